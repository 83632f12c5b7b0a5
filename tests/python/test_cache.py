"""append_kv, fetch_kv, pack, unpack and PagedCache: the bytes in a page, every layout, strided and empty inputs."""

import pytest
import torch
from problems import LATENT, PAGE, POISON, TOKEN, empty_cache
from test_quantize import angles, rotate

import snapmla

LAYOUTS = ["records", "padded", "planes", "sparse"]


def same_bits(a, b):
    bits = lambda x: x.contiguous().flatten().view(torch.uint8)
    return torch.equal(bits(a), bits(b))


def rows(count, device, seed=1):
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(count, TOKEN, generator=generator) * torch.rand(count, 1, generator=generator).mul(8).exp2()
    kv[:, LATENT : LATENT + 2] *= 1000
    return kv.bfloat16().to(device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", ["pow2", "amax"])
@pytest.mark.parametrize("format", ["fp8", "bf16"])
def test_append_writes_what_pack_writes(device, format, rule, layout):
    kv = rows(3 * PAGE, device)
    want = snapmla.pack(kv.view(3, PAGE, TOKEN), format, scale_rule=rule)
    cache = empty_cache(5, format, layout, device)
    order = torch.randperm(3 * PAGE, generator=torch.Generator().manual_seed(2)).to(device)
    snapmla.append_kv(kv[order], order + PAGE, cache, scale_rule=rule)  # pages 1 to 3
    for name in ("latent", "rope", "scale"):
        got, expected = getattr(cache, name), getattr(want, name)
        if expected is not None:
            assert same_bits(got[1:4], expected)
            outside = got[[0, 4]].contiguous().view(torch.uint8)
            assert (outside == POISON).all()


def test_page_bytes():
    """The record is docs/format.md's, byte by byte."""
    kv = rows(PAGE, "cpu").view(1, PAGE, TOKEN)
    cache = snapmla.pack(kv)
    page = cache.records[0]
    assert page.shape == (41216,) and cache.token_bytes == 644
    assert same_bits(page[:32768], cache.latent[0]) and same_bits(page[32768:40960], cache.rope[0])
    assert same_bits(page[40960:], cache.scale[0])
    scale = cache.scale.double()[..., None]
    real = kv[..., :LATENT].double()
    error = (cache.latent.double() * scale - real).abs()
    assert (error <= torch.maximum(2**-4 * real.abs(), 2**-10 * scale)).all()
    assert torch.equal((cache.rope.double() * scale), kv[..., LATENT:].double())  # exact with powers of two


@pytest.mark.parametrize("format", ["fp8", "bf16"])
def test_norm_and_rotation(device, format):
    """The fused op equals norm, rotation and quantization one after the other; sums of squares may differ in the last
    bit of fp32, so a few latents may round to the neighbouring bf16."""
    kv, cos_sin = rows(70, device), angles(100, device)
    positions = torch.arange(20, 90, dtype=torch.int32, device=device)
    weight = (1 + torch.randn(512, generator=torch.Generator().manual_seed(3)) / 8).bfloat16().to(device)
    cache = snapmla.PagedCache.allocate(2, format, device=device)
    slots = torch.arange(70, device=device)
    snapmla.append_kv(kv, slots, cache, norm_weight=weight, norm_eps=1e-5, cos_sin=cos_sin, positions=positions)
    latent = kv[:, :LATENT].float()
    inverse = (latent.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt().float()
    rotated = rotate(kv[:, LATENT:], cos_sin[positions.long()], True)
    unfused = torch.cat([(latent * inverse * weight.float()).bfloat16(), rotated], -1)
    padded = torch.zeros(2 * PAGE, TOKEN, dtype=torch.bfloat16, device=device)
    padded[:70] = unfused
    want = snapmla.unpack(snapmla.pack(padded.view(2, PAGE, TOKEN), format)).flatten(0, 1)[:70].double()
    got = snapmla.unpack(cache).flatten(0, 1)[:70].double()
    assert torch.equal(got[:, LATENT:], want[:, LATENT:])
    step = 2**-3 if format == "fp8" else 2**-7
    assert ((got - want).abs() <= step * want.abs() + 1e-6).all()
    assert (got != want).double().mean() < 1e-2


def test_slots(device):
    """-1 skips; int32 and int64 are taken alike; row strides and offsets are free; no tokens are no work."""
    kv = rows(8, device)
    slots = torch.tensor([3, -1, 64, 0, -1, 127, 5, 1], device=device)
    want = snapmla.unpack(snapmla.pack(kv[:, None].expand(8, PAGE, TOKEN).contiguous()))[:, 0]
    wide = torch.full((8, 700), torch.nan, dtype=torch.bfloat16, device=device)
    wide[:, 100:676] = kv
    for slot_type in (torch.int32, torch.int64):
        cache = empty_cache(2, "fp8", "records", device)
        snapmla.append_kv(wide[:, 100:676], slots.to(slot_type), cache)
        snapmla.append_kv(kv[:0], slots[:0].to(slot_type), cache)
        assert torch.equal(snapmla.unpack(cache).flatten(0, 1)[slots[slots >= 0]], want[slots >= 0])
        untouched = torch.ones(2 * PAGE, dtype=torch.bool, device=device)
        untouched[slots[slots >= 0]] = False
        assert (cache.latent.flatten(0, 1)[untouched].view(torch.uint8) == POISON).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format,rule", [("fp8", "pow2"), ("fp8", "amax"), ("bf16", "pow2")])
def test_fetch(device, format, rule, layout):
    kv = rows(4 * PAGE, device)
    cache = empty_cache(4, format, layout, device)
    snapmla.append_kv(kv, torch.arange(4 * PAGE, device=device), cache, scale_rule=rule)
    whole = snapmla.unpack(cache).flatten(0, 1)
    int32 = lambda values: torch.tensor(values, dtype=torch.int32, device=device)
    block_table = int32([[2, 0, 1], [3, -7, 1 << 30], [1, 3, 0]])
    starts, lengths = [60, 0, 63], [70, 64, 2]
    want = []
    for row, start, length in zip(block_table.tolist(), starts, lengths):
        want += [row[t // PAGE] * PAGE + t % PAGE for t in range(start, start + length)]
    offsets = int32([0, 70, 134, 136])
    latent, rope = snapmla.fetch_kv(cache, block_table, int32(starts), offsets, 136)
    assert same_bits(torch.cat([latent, rope], -1), whole[want])
    # Into slices of a larger buffer, from a slice of a larger table.
    out = torch.full((140, 600), torch.nan, dtype=torch.bfloat16, device=device)
    wide_table = torch.cat([block_table, block_table], -1)[:, :3]
    snapmla.fetch_kv(cache, wide_table, int32(starts), offsets, out=(out[:136, :512], out[:136, 512:576]))
    assert same_bits(out[:136, :576], whole[want]) and out[:, 576:].isnan().all() and out[136:].isnan().all()


def test_fetch_nothing(device):
    cache = snapmla.PagedCache.allocate(1, device=device)
    zeros = torch.zeros(2, dtype=torch.int32, device=device)
    latent, rope = snapmla.fetch_kv(cache, zeros[:1, None], zeros[:1], zeros, 0)
    assert latent.shape == (0, 512) and rope.shape == (0, 64)


@pytest.mark.parametrize("format", ["fp8", "bf16"])
def test_unpack_restores(format):
    kv = rows(2 * PAGE, "cpu").view(2, PAGE, TOKEN)
    back = snapmla.unpack(snapmla.pack(kv, format))
    assert torch.equal(back[..., LATENT:], kv[..., LATENT:])
    if format == "bf16":
        assert torch.equal(back, kv)


def test_allocate():
    for format, page in (("fp8", 41216), ("bf16", 73728)):
        for stride in (None, page, page + 16):
            cache = snapmla.PagedCache.allocate(3, format, page_stride=stride)
            assert cache.num_pages == 3 and cache.format == format
            assert cache.latent.stride(0) * cache.latent.itemsize == (stride or page)
            assert cache.latent.untyped_storage().data_ptr() == cache.rope.untyped_storage().data_ptr()
        assert snapmla.PagedCache.allocate(0, format).num_pages == 0
    vllm = torch.zeros(4, 64, 656, dtype=torch.uint8)
    cache = snapmla.PagedCache.from_records(vllm)
    snapmla.append_kv(rows(1, "cpu"), torch.tensor([130]), cache)
    assert (cache.records.stride(0), vllm[2].any().item(), vllm[1].any().item()) == (41984, True, False)


@pytest.mark.parametrize("make, text", [
    (lambda: snapmla.PagedCache.allocate(-1), "num_pages must not be negative; got -1"),
    (lambda: snapmla.PagedCache.allocate(1, "int8"), "format must be fp8 or bf16; got 'int8'"),
    (lambda: snapmla.PagedCache.allocate(1, page_stride=41000), "page_stride must be a multiple of 16"),
    (lambda: snapmla.PagedCache.allocate(1, page_stride=41217), "page_stride must be a multiple of 16"),
    (lambda: snapmla.PagedCache.from_records(torch.zeros(2, 100, dtype=torch.uint8)), "at least 41216"),
    (lambda: snapmla.PagedCache.from_records(torch.zeros(2, 82432, dtype=torch.uint8)[:, ::2]), "dense within a page"),
    (lambda: snapmla.PagedCache.from_records(torch.zeros(2, 64, 576)), "records must be uint8"),
    (lambda: snapmla.PagedCache.from_records(torch.zeros(2, 32, 576).bfloat16()), "records must be uint8"),
    (lambda: snapmla.PagedCache.from_planes(torch.zeros(2, 32, 512).bfloat16(), None), "latent must be"),
    (lambda: snapmla.PagedCache.from_planes(torch.zeros(2, 64, 512), None), "latent must be float8_e4m3fn or bfloat16"),
    (lambda: snapmla.pack(torch.zeros(2, 64, 576)), "kv must be bfloat16"),
    (lambda: snapmla.pack(torch.zeros(2, 64, 576).bfloat16(), scale_rule="max"), "scale_rule must be pow2 or amax"),
])
def test_wrong_pools(make, text):
    with pytest.raises(ValueError, match=text):
        make()
