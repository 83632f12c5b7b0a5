"""Wrong arguments: ValueError or TypeError with the core's text, and never a crash."""

import pytest
import torch
from problems import Case, Problem

import snapmla


@pytest.fixture
def problem(device):
    return Problem(Case((70, 5), s=1, heads=4), device)


def decode_arguments(problem):
    latent, rope, scale = problem.query()
    return {"q_latent": latent, "q_rope": rope, "q_scale": scale, "cache": problem.cache,
            "block_table": problem.block_table, "seq_lens": problem.seq_lens, "plan": problem.plan(),
            "softmax_scale": 0.1}


def raises(function, text, error=ValueError, **arguments):
    with pytest.raises(error) as caught:
        function(**arguments)
    assert text in str(caught.value), str(caught.value)


@pytest.mark.parametrize("change, text", [
    (lambda a: {"q_latent": a["q_latent"].float()}, "[decode] q_latent must be e4m3 [batch, s, heads, 512]; got f32"),
    (lambda a: {"q_latent": a["q_latent"].to(torch.bfloat16)}, "[decode] q_latent must be e4m3"),
    (lambda a: {"q_latent": a["q_latent"].float().to(torch.int8)}, "q_latent has a dtype that no op takes; got Char"),
    (lambda a: {"q_latent": a["q_latent"][0]}, "q_latent must be e4m3 [batch, s, heads, 512]; got e4m3 [1, 4, 512]"),
    (lambda a: {"q_latent": a["q_latent"][None]}, "q_latent must have at most 4 dimensions; got 5"),
    (lambda a: {"q_latent": a["q_latent"].view(torch.uint8).repeat(1, 1, 1, 2).view(torch.float8_e4m3fn)[..., ::2]},
     "q_latent must be dense in its last dimension"),
    (lambda a: {"q_latent": a["q_latent"][:, :, ::2]}, "q_rope must be bf16 [batch=2, s=1, heads=2, 64]; got"),
    (lambda a: {"q_rope": None}, "q_latent without q_rope must be bf16 [batch, s, heads, 576]; got e4m3 [2, 1, 4, 512]"),
    (lambda a: {"q_rope": a["q_rope"][:1]}, "q_rope must be bf16 [batch=2, s=1, heads=4, 64]"),
    (lambda a: {"q_scale": None}, "q_scale must be f32 [batch=2, s=1, heads=4]; got absent"),
    (lambda a: {"q_scale": a["q_scale"].double()}, "q_scale must be f32"),
    (lambda a: {"block_table": a["block_table"].long()}, "block_table must be int32 [batch=2, max_pages]; got int64"),
    (lambda a: {"block_table": a["block_table"].T}, "block_table must be"),
    (lambda a: {"seq_lens": a["seq_lens"].repeat(2)}, "seq_lens must be int32 [batch=2]; got int32 [4]"),
    (lambda a: {"seq_lens": a["seq_lens"].long()}, "seq_lens must be int32 [batch=2]; got int64 [2]"),
    (lambda a: {"softmax_scale": float("nan")}, "softmax_scale must be finite; got nan"),
    (lambda a: {"plan": snapmla.plan(a["seq_lens"][:1])}, "plan must be dense int32"),
    (lambda a: {"workspace": torch.empty(16, dtype=torch.uint8, device=a["q_rope"].device)},
     "workspace must be dense u8 of at least"),
    (lambda a: {"out": torch.empty(2, 1, 4, 512, device=a["q_rope"].device)}, "out and lse must be given together"),
    (lambda a: {"out": torch.empty(2, 1, 4, 500, device=a["q_rope"].device), "lse": a["q_scale"].clone()},
     "out must be dense bf16 or f32 [batch=2, s=1, heads=4, 512]"),
    (lambda a: {"out_dtype": torch.float16}, "out must be dense bf16 or f32"),
    (lambda a: {"cache": snapmla.PagedCache.allocate(4, "bf16", device=a["q_rope"].device)},
     "q_latent must be bf16 [batch, s, heads, 512]; got e4m3"),
])
def test_decode(problem, change, text):
    arguments = decode_arguments(problem)
    raises(snapmla.decode, text, **{**arguments, **change(arguments)})


def test_query_rows_must_be_evenly_spaced(device):
    problem = Problem(Case((70, 5), s=2, heads=4, format="bf16"), device)
    latent, rope, _ = problem.query()
    swapped = rope.transpose(1, 2).contiguous().transpose(1, 2)
    raises(snapmla.decode, "q_rope must have evenly spaced rows (s, heads) in a request; got bf16 [2, 2, 4, 64] with "
           "strides [512, 64, 128, 1]", **{**decode_arguments(problem), "q_rope": swapped})


def test_what_only_cuda_refuses(cuda_device):
    """Alignment, for the copy engine; and scales apart from each other, which append_kv and fetch_kv take."""
    problem = Problem(Case((70, 5), format="bf16"), cuda_device)
    latent, rope, _ = problem.query()
    odd = lambda q: torch.empty(q.numel() + 1, dtype=q.dtype, device=q.device)[1:].view_as(q).copy_(q)
    apart = lambda q: torch.cat([q, q], -1)[..., : q.shape[-1] + 1].contiguous()[..., :-1]
    for name, q in (("q_latent", latent), ("q_rope", rope)):
        raises(snapmla.decode, f"{name} must be 16-byte aligned", **{**decode_arguments(problem), name: odd(q)})
        raises(snapmla.decode, "q_latent and q_rope must have 16-byte aligned rows on the cuda backend; got bf16 [2, 1, 4",
               **{**decode_arguments(problem), name: apart(q)})
    sparse = Problem(Case((70, 5), layout="sparse"), cuda_device)
    raises(snapmla.decode, "cache.scale must be dense within a page (row_stride 4)", **decode_arguments(sparse))


def test_contents_are_checked_on_the_cpu():
    problem = Problem(Case((70, 5)), torch.device("cpu"))
    arguments = decode_arguments(problem)
    bad_table = torch.full_like(problem.block_table, 1 << 20)
    raises(snapmla.decode, "block_table must hold pages in [0, ", **{**arguments, "block_table": bad_table})
    raises(snapmla.plan, "seq_lens must lie in [0, 1048576]; got -1", seq_lens=torch.tensor([-1], dtype=torch.int32))
    kv = torch.zeros(2, 576).bfloat16()
    before = problem.cache.records.clone()
    raises(snapmla.append_kv, "slot_mapping must hold -1 or slots in [0, ", kv=kv,
           slot_mapping=torch.tensor([0, 1 << 40]), cache=problem.cache)
    assert torch.equal(problem.cache.records, before)
    raises(snapmla.quantize_q, "rope.positions must lie in [0, 3); got 3", q_latent=problem.q_latent,
           q_rope=problem.q_rope, cos_sin=torch.zeros(3, 64), positions=torch.full((2, 1), 3, dtype=torch.int32))


def test_quantize_q(problem):
    latent, rope = problem.q_latent, problem.q_rope
    raises(snapmla.quantize_q, "q_latent must be bf16", q_latent=latent.half(), q_rope=rope)
    raises(snapmla.quantize_q, "[quantize_q] q_latent without q_rope must be bf16 [batch, s, heads, 576]; got bf16 [2, 1, 4, 512]",
           q_latent=latent, q_rope=None)
    raises(snapmla.quantize_q, "q_latent must be dense in its last dimension",
           q_latent=latent.repeat(1, 1, 1, 2)[..., ::2], q_rope=rope)
    raises(snapmla.quantize_q, "heads must be 1 to 128; got 129", q_latent=latent[:, :, :1].expand(2, 1, 129, 512),
           q_rope=rope[:, :, :1].expand(2, 1, 129, 64))
    raises(snapmla.quantize_q, "batch must be 1 to 4096; got 0", q_latent=latent[:0], q_rope=rope[:0])
    raises(snapmla.quantize_q, "scale_rule must be pow2 or amax; got 'max'", q_latent=latent, q_rope=rope,
           scale_rule="max")
    raises(snapmla.quantize_q, "rope.positions must be int32 [batch=2, s=1]; got absent", q_latent=latent, q_rope=rope,
           cos_sin=torch.zeros(3, 64, device=latent.device))
    raises(snapmla.quantize_q, "q_rope", error=TypeError, q_latent=latent, q_rope=3)
    raises(snapmla.quantize_q, "scale_rule", error=TypeError, q_latent=latent, q_rope=rope, scale_rule=1)


def test_append_and_fetch(problem):
    device, cache = problem.device, problem.cache
    kv, slots = torch.zeros(2, 576, device=device).bfloat16(), torch.arange(2, device=device)
    raises(snapmla.append_kv, "kv must be bf16 [tokens, 576]; got f32 [2, 576]", kv=kv.float(), slot_mapping=slots,
           cache=cache)
    raises(snapmla.append_kv, "slot_mapping must be int32 or int64 [tokens=2]; got int64 [1]", kv=kv,
           slot_mapping=slots[:1], cache=cache)
    raises(snapmla.append_kv, "norm_weight must be bf16 [512]", kv=kv, slot_mapping=slots, cache=cache,
           norm_weight=torch.ones(512, device=device))
    raises(snapmla.append_kv, "norm_eps must be finite and not negative", kv=kv, slot_mapping=slots, cache=cache,
           norm_weight=torch.ones(512, device=device).bfloat16(), norm_eps=-1.0)
    zeros = torch.zeros(2, dtype=torch.int32, device=device)
    raises(snapmla.fetch_kv, "total must be given", cache=cache, block_table=problem.block_table, starts=zeros,
           offsets=zeros)
    raises(snapmla.fetch_kv, "total must not be negative", cache=cache, block_table=problem.block_table, starts=zeros,
           offsets=zeros, total=-1)
    raises(snapmla.fetch_kv, "offsets must be int32 [ranges+1=3]; got int32 [2]", cache=cache,
           block_table=problem.block_table, starts=zeros, offsets=zeros, total=0)


def test_plan_and_combine(problem):
    lens = problem.seq_lens
    raises(snapmla.plan, "max_seq_len must be given", seq_lens=lens, fixed_split_tokens=64)
    raises(snapmla.plan, "fixed_split_tokens must be 0 or a positive multiple of 64; got 65", seq_lens=lens,
           max_seq_len=100, fixed_split_tokens=65)
    raises(snapmla.plan, "max_seq_len must be 1 to 1048576; got 0", seq_lens=lens, max_seq_len=0)
    raises(snapmla.plan, "rows (s * heads) must be 0 to 1024; got 2000", seq_lens=lens, rows=2000)
    raises(snapmla.plan, "batch must be 1 to 4096; got 0", seq_lens=lens[:0])
    raises(snapmla.plan, "seq_lens must be int32 [batch]; got int64 [2]", seq_lens=lens.long())
    raises(snapmla.plan(lens).update, "plan must be dense int32", seq_lens=lens[:1])
    partial = torch.zeros(3, 4, 512, device=lens.device)
    offsets = torch.tensor([0, 3], dtype=torch.int32, device=lens.device)
    raises(snapmla.combine, "s must divide the rows", partial_out=partial, partial_lse=partial[..., 0].contiguous(),
           split_offsets=offsets, s=3)
    raises(snapmla.combine, "partial_lse must be f32 [partials=3, rows=4]", partial_out=partial,
           partial_lse=partial[:2, :, 0].contiguous(), split_offsets=offsets)


def test_planes_must_be_aligned(device):
    buffer = torch.zeros(2 * 41216 + 64, dtype=torch.uint8, device=device)
    cache = snapmla.PagedCache.from_records(buffer[8 : 8 + 2 * 41216].view(2, 41216))
    raises(snapmla.append_kv, "cache.latent must have a 16-byte aligned pointer", cache=cache,
           kv=torch.zeros(1, 576, device=device).bfloat16(), slot_mapping=torch.zeros(1, dtype=torch.int64, device=device))


def test_devices_must_agree(cuda_device):
    problem = Problem(Case((70, 5)), cuda_device)
    arguments = decode_arguments(problem)
    for name in ("q_rope", "q_scale", "block_table", "seq_lens"):
        raises(snapmla.decode, f"{name} must be on cuda:0 as q_latent is; got cpu",
               **{**arguments, name: arguments[name].cpu()})


def test_other_layouts_and_devices_do_not_crash():
    latent, rope = torch.zeros(1, 1, 1, 512).bfloat16(), torch.zeros(1, 1, 1, 64).bfloat16()
    with pytest.raises(NotImplementedError):
        snapmla.quantize_q(latent.to_sparse(), rope)
    meta = snapmla.quantize_q(latent.to("meta"), rope.to("meta"))
    assert meta.latent.device.type == "meta" and meta.latent.shape == (1, 1, 1, 512)
