"""The drop-in for FlashMLA: its shapes, defaults and corner cases, for both caches, against fp64.

The grid is what a dense decode kernel with one KV head is asked for: batches, one to four query tokens, short and long
contexts, equal and varying lengths, odd and full head counts, with and without the causal mask, empty requests. All unused
slots are NaN and all unused block-table entries out of range.
"""

import itertools
import math

import pytest
import torch
from problems import PAGE, TOKEN, Case, Problem

import snapmla
from snapmla.flash_mla import flash_mla_with_fp8_kvcache, flash_mla_with_kvcache, get_mla_metadata

OUT_OF_RANGE = 2147480000


def make(device, batch, s, tokens, heads, varying, empty=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lens = torch.full((batch,), tokens, dtype=torch.int32)
    if varying:
        lens = (tokens + tokens / 2 * torch.randn(batch, generator=generator)).clamp_min(s).int()
    if empty:
        lens[torch.randn(batch, generator=generator) > 0] = 0
    width = 4 * -(-int(lens.max()) // 256)
    table = torch.randperm(batch * width, generator=generator).view(batch, width).int()
    there = torch.Generator(device).manual_seed(seed)
    small = lambda *shape: (torch.randn(*shape, generator=there, device=device) / 10).clamp(-1, 1).bfloat16()
    q, pages = small(batch, s, heads, TOKEN), small(max(1, batch * width), PAGE, 1, TOKEN)
    pages += torch.linspace(-0.1, 0.1, TOKEN, device=device).bfloat16()  # a mean: errors of accumulation show
    table, lens = table.to(device), lens.to(device)
    unused = torch.arange(width * PAGE, device=device) >= lens[:, None]
    unused_slots = torch.ones(len(pages), PAGE, dtype=torch.bool, device=device)
    unused_slots[table.flatten().long()] = unused.view(batch * width, PAGE)
    pages.masked_fill_(unused_slots[..., None, None], torch.nan)
    table.masked_fill_(unused[:, ::PAGE], OUT_OF_RANGE)
    return q, pages, table, lens


def attention(q, pages, table, lens, causal, scale):
    """fp64, on the device of q, all requests at once; rows without tokens give 0 and +inf."""
    batch, s, heads, _ = q.shape
    longest = int(lens.max())
    token = torch.arange(longest, device=q.device)
    keys = pages.flatten(2)[table.where(table != OUT_OF_RANGE, 0).long()].flatten(1, 2)[:, :longest]
    keys = keys.masked_fill((token >= lens[:, None])[..., None], 0).double()
    last = lens[:, None] - s + torch.arange(s, device=q.device) if causal else lens[:, None].expand(-1, s) - 1
    hidden = (token > last[..., None])[:, :, None]  # [batch, s, 1, longest]
    logits = scale * (q.double().flatten(1, 2) @ keys.mT).view(batch, s, heads, longest)
    logits.masked_fill_(hidden, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = logits.sub_(lse[..., None]).exp_().masked_fill_(hidden, 0)  # a row of -inf alone is NaN until here
    out = (weights.flatten(1, 2) @ keys[..., :512]).view(batch, s, heads, 512)
    return out, lse.masked_fill(lse == -torch.inf, torch.inf).transpose(1, 2)


def close(got, want, absolute, relative):
    got = got.double()
    assert torch.equal(got.isinf(), want.isinf()) and not got.isnan().any()
    finite = want.isfinite()
    assert (got[~finite] > 0).all()
    error = ((got - want).abs() - relative * want.abs())[finite]
    assert error.numel() == 0 or error.max() <= absolute


HEADS = [1, 3, 9, 63, 64, 126, 128]
GRID = [
    case
    for case in itertools.product([1, 2, 6], [1, 2, 4], [20, 140], HEADS, [False, True])
    if case[0] * case[1] * case[2] * case[3] <= 30_000 or (case[3] == 128 and case[0] == 2)  # what a CPU does quickly
]
CORNERS = [(8, 2, 300, heads, True) for heads in (1, 3, 9, 63)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch, s, tokens, heads, varying", GRID)
def test_bf16(device, batch, s, tokens, heads, varying, causal):
    check_bf16(make(device, batch, s, tokens, heads, varying), causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch, s, tokens, heads, varying", CORNERS)
def test_bf16_empty_requests(device, batch, s, tokens, heads, varying, causal):
    problem = make(device, batch, s, tokens, heads, varying, empty=True)
    assert (problem[3] == 0).any()
    check_bf16(problem, causal)


@pytest.mark.parametrize("batch", [1, 2, 6, 64])
@pytest.mark.parametrize("tokens", [20, 140, 4096])
def test_bf16_whole_grid(cuda_device, batch, tokens):
    """FlashMLA's own correctness cases with one KV head: 84 for each batch and length."""
    for s, heads, varying, causal in itertools.product([1, 2, 4], HEADS, [False, True], [False, True]):
        check_bf16(make(cuda_device, batch, s, tokens, heads, varying), causal)


@pytest.mark.parametrize("heads", HEADS)
def test_bf16_whole_corners(cuda_device, heads):
    """Its corner cases: about half of 128 requests are empty."""
    for causal in (False, True):
        check_bf16(make(cuda_device, 128, 2, 4096, heads, True, empty=True), causal)


def test_bf16_long(cuda_device):
    check_bf16(make(cuda_device, 1, 1, 100_000, 128, False), causal=True)


@pytest.mark.parametrize("how", ["heads first", "every other dim"])
def test_any_strides_of_q(device, how):
    """What decode does not take as it lies is copied."""
    q, pages, table, lens = make(device, 2, 3, 140, 9, True)
    call = lambda q: flash_mla_with_kvcache(q, pages, table, lens, 512, get_mla_metadata()[0])[0]
    want = call(q)
    if how == "heads first":
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        q = q.repeat_interleave(2, -1)[..., ::2]
    assert not q.is_contiguous() and torch.equal(call(q), want)


def check_bf16(problem, causal):
    """out: P and out are rounded to bf16, 2^-9 of the value each, and the fp32 sums before; lse: fp32 sums of 576 products
    a logit. The bounds are those FlashMLA states for itself: 8e-4 + 2/128 of the value, 5e-6 of the angle between all values
    and all expected, and 1e-6 + 2^-13 of the lse."""
    q, pages, table, lens = problem
    meta, num_splits = get_mla_metadata()
    call = lambda: flash_mla_with_kvcache(q, pages, table, lens, 512, meta, num_splits, causal=causal)
    out, lse = call()
    want_out, want_lse = attention(q, pages, table, lens, causal, TOKEN**-0.5)
    assert out.shape == (*q.shape[:3], 512) and out.dtype == torch.bfloat16
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.dtype == torch.float32 and lse.is_contiguous()
    close(out, want_out, 8e-4, 2 / 128)
    got = out.double()
    angle = 1 - 2 * (got * want_out).sum() / (got.square() + want_out.square()).sum()
    assert not angle > 5e-6  # NaN where no row sees a token
    close(lse, want_lse, 1e-6, 2**-13)
    again = call()  # with the metadata of the first call
    assert torch.equal(again[0], out) and torch.equal(again[1], lse)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("as_records", [False, True])
def test_fp8(device, causal, as_records):
    """The sibling gives what the ops give, in FlashMLA's layout."""
    problem = Problem(Case((70, 0, 200, 1), s=2, heads=9, causal=causal), device)
    want_out, want_lse = problem.solve(out_dtype=torch.bfloat16)
    q = torch.cat([problem.q_latent, problem.q_rope], -1)
    cache = problem.cache.records if as_records else problem.cache
    meta, _ = get_mla_metadata()
    out, lse = flash_mla_with_fp8_kvcache(q, cache, problem.block_table, problem.seq_lens, 512, meta,
                                          softmax_scale=problem.softmax_scale, causal=causal)
    assert torch.equal(out, want_out)
    empty = want_lse.isinf()
    assert empty.any()
    assert torch.equal(lse.transpose(1, 2)[~empty], want_lse[~empty]) and (lse.transpose(1, 2)[empty] == math.inf).all()


def test_metadata(device):
    """Planned by the first call and kept; another shape with it is an error; update serves the next lengths."""
    q, pages, table, lens = make(device, 2, 1, 140, 9, True)
    meta, nothing = get_mla_metadata(lens, 9, 1)  # arguments of older callers are ignored
    assert nothing is None and meta.plan is None
    out, _ = flash_mla_with_kvcache(q, pages, table, lens, 512, meta)
    first = meta.plan
    flash_mla_with_kvcache(q, pages, table, lens, 512, meta, None, 0.1)
    assert meta.plan is first
    with pytest.raises(ValueError, match="was planned for"):
        flash_mla_with_kvcache(q[:, :, :3], pages, table, lens, 512, meta)
    shorter = lens // 2
    meta.plan.update(shorter)
    got, _ = flash_mla_with_kvcache(q, pages, table, shorter, 512, meta)
    want, _ = flash_mla_with_kvcache(q, pages, table, shorter, 512, get_mla_metadata()[0])
    assert torch.equal(got, want) and not torch.equal(got, out)


@pytest.mark.parametrize("change, text", [
    (dict(is_fp8_kvcache=True), "flash_mla_with_fp8_kvcache"),
    (dict(indices=torch.zeros(1)), "indices must be None: there is no sparse attention here"),
    (dict(attn_sink=torch.zeros(1)), "attn_sink must be None"),
    (dict(head_dim_v=576), "head_dim_v must be 512; got 576"),
    (dict(num_splits=3), "num_splits must be None"),
    (dict(block_table=None), "block_table and cache_seqlens must be given"),
    (dict(tile_scheduler_metadata=None), "tile_scheduler_metadata must come from"),
    (dict(q=torch.zeros(1, 1, 1, 576)), "q must be bfloat16 .batch, s, heads, 576.; got float32"),
    (dict(q=torch.zeros(1, 1, 1, 512).bfloat16()), "q must be bfloat16"),
    (dict(k_cache=torch.zeros(1, 64, 2, 576).bfloat16()), "k_cache must be bfloat16 .num_pages, 64, 1, 576."),
    (dict(k_cache=torch.zeros(1, 32, 1, 576).bfloat16()), "k_cache must be bfloat16"),
    (dict(cache_seqlens=torch.zeros(1, dtype=torch.int64)), "seq_lens must be int32"),
])
def test_errors(change, text):
    q, pages, table, lens = make("cpu", 1, 1, 20, 3, False)
    arguments = dict(q=q, k_cache=pages, block_table=table, cache_seqlens=lens, head_dim_v=512,
                     tile_scheduler_metadata=get_mla_metadata()[0])
    with pytest.raises(ValueError, match=text):
        flash_mla_with_kvcache(**{**arguments, **change})


def test_fp8_sibling_refuses_bf16():
    q, pages, table, lens = make("cpu", 1, 1, 20, 3, False)
    with pytest.raises(ValueError, match="k_cache must hold FP8 pages"):
        flash_mla_with_fp8_kvcache(q, pages, table, lens, 512, get_mla_metadata()[0])
    assert snapmla.PagedCache.from_records(pages).format == "bf16"
