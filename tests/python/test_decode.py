"""decode, plan and combine against fp64 attention."""

import pytest
import torch
from problems import Case, Problem, assert_matches

import snapmla

EDGES = (0, 1, 63, 64, 65, 200)
CASES = [
    Case(EDGES),
    Case(EDGES, format="bf16"),
    Case(EDGES, rule="amax"),
    Case(EDGES, s=3, heads=5),
    Case(EDGES, s=3, heads=5, format="bf16"),
    Case(EDGES, s=3, heads=5, causal=False),
    Case(EDGES, s=2, causal=False, format="bf16"),
    Case(EDGES, layout="padded"),
    Case(EDGES, layout="planes"),
    Case(EDGES, layout="padded", format="bf16"),
    Case(EDGES, layout="planes", format="bf16"),
    Case(EDGES, layout="planes", rule="amax", heads=1),
    Case((700, 3), num_workers=5),
    Case((700, 3), num_workers=5, format="bf16"),
    Case((700, 64, 129), fixed=128),
    Case((700, 64, 129), fixed=64, format="bf16", s=2),
    Case((300, 17), heads=128),
    Case((300, 17), heads=16, s=8, format="bf16"),
    Case((400,), std=3.6),
    Case((400,), std=0.0),
    Case((400,), rope_outliers=True),
    Case((400,), rope_outliers=True, rule="amax"),
    Case((400,), rope_outliers=True, format="bf16"),
    Case((0, 0)),
]


def test_scales_may_lie_apart_on_the_cpu():
    problem = Problem(Case(EDGES, layout="sparse"), torch.device("cpu"))
    assert_matches(problem, *problem.solve())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_fp64(device, case):
    problem = Problem(case, device)
    out, lse = problem.solve()
    assert_matches(problem, out, lse)


@pytest.mark.parametrize("format", ["fp8", "bf16"])
def test_no_pages_at_all(device, format):
    """A pool and a table of nothing, as before the first token."""
    problem = Problem(Case((0, 0), format=format), device)
    problem.cache = snapmla.PagedCache.allocate(0, format, device=device)
    problem.block_table = torch.empty(2, 0, dtype=torch.int32, device=device)
    out, lse = problem.solve()
    assert (out == 0).all() and (lse == -torch.inf).all()


def strided(q, how):
    """The same rows [batch, s, heads, width] elsewhere in memory."""
    batch, s, heads, width = q.shape
    if how == "slice":  # of a wider projection, 16 bytes in
        wide = q.new_empty(batch, s, heads, width + 64)
        return wide[..., 16 // q.itemsize :][..., :width].copy_(q)
    if how == "heads first":  # [heads, batch, width], as a batched product over heads leaves it
        return q.new_empty(s * heads, batch, width).permute(1, 0, 2).unflatten(1, (s, heads)).copy_(q)
    return q.new_empty(2 * batch, s, heads, width)[::2].copy_(q)  # "every other request"


@pytest.mark.parametrize("how", ["slice", "heads first", "every other request"])
@pytest.mark.parametrize("format", ["fp8", "bf16"])
@pytest.mark.parametrize("s, heads", [(1, 9), (2, 40), (3, 1), (1, 1)])
def test_strided_query(device, format, s, heads, how):
    """Rows are read where they lie: the bits of a dense query."""
    problem = Problem(Case((130, 7, 64), s=s, heads=heads, format=format), device)
    latent, rope, scale = problem.query()
    problem.query = lambda: (latent, rope, scale)
    want = problem.solve()
    problem.query = lambda: (strided(latent.view(torch.uint8).view(latent.dtype), how), strided(rope, how), scale)
    got = problem.solve()
    assert not strided(latent, how).is_contiguous() or (s, heads) == (1, 1)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("s", [1, 2])
def test_query_in_one_tensor(device, s):
    """BF16: latent and rope side by side, as FlashMLA's callers have them."""
    problem = Problem(Case((130, 7), s=s, heads=9, format="bf16"), device)
    want = problem.solve()
    wide = torch.cat([problem.q_latent, problem.q_rope, problem.q_rope], -1)
    problem.query = lambda: (wide[..., :576], None, None)
    for workspace in (None, problem.plan().workspace(s, 9)):
        got = problem.solve(workspace=workspace)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("format", ["fp8", "bf16"])
def test_outputs(device, format):
    """The same bits with out=, with a workspace, twice, and rounded once for bf16; poisoned outputs are overwritten."""
    problem = Problem(Case((130, 0, 700), s=2, format=format, num_workers=3), device)
    want_out, want_lse = problem.solve()
    plan = problem.plan()
    for dtype in (torch.float32, torch.bfloat16):
        for workspace in (None, plan.workspace(2, 4)):
            out = torch.full_like(want_out, torch.nan, dtype=dtype)
            lse = torch.full_like(want_lse, torch.nan)
            got = problem.solve(out=out, lse=lse, workspace=workspace)
            assert got[0] is out and got[1] is lse
            assert torch.equal(out, want_out.to(dtype)) and torch.equal(lse, want_lse)
    rounded, _ = problem.solve(out_dtype=torch.bfloat16)
    assert torch.equal(rounded, want_out.bfloat16())
    allocated, _ = problem.solve(workspace=plan.workspace(2, 4))
    assert torch.equal(allocated, want_out)


def test_fixed_splits_do_not_see_the_batch(device):
    batch = Problem(Case((700, 64, 129, 5), fixed=128), device)
    out, lse = batch.solve()
    for b in range(4):
        plan = snapmla.plan(batch.seq_lens[b : b + 1], rows=4, max_seq_len=700, fixed_split_tokens=128)
        q = [x[b : b + 1] for x in batch.query()]
        alone = snapmla.decode(*q, batch.cache, batch.block_table[b : b + 1], batch.seq_lens[b : b + 1], plan,
                               batch.softmax_scale, out_dtype=torch.float32)
        assert torch.equal(alone[0][0], out[b]) and torch.equal(alone[1][0], lse[b])


def test_plan_is_reused(device):
    """One plan, refilled for each step's lengths, gives what a new plan gives."""
    problem = Problem(Case((300, 200, 700), num_workers=4), device)
    plan = problem.plan()
    data = plan.data.data_ptr()
    for lengths in ((300, 200, 700), (1, 0, 699), (64, 128, 5)):
        lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        arguments = (*problem.query(), problem.cache, problem.block_table, lens)
        new = snapmla.plan(lens, rows=4, num_workers=4)
        want = snapmla.decode(*arguments, new, problem.softmax_scale)
        got = snapmla.decode(*arguments, plan.update(lens), problem.softmax_scale)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and plan.data.data_ptr() == data
        assert torch.equal(plan.worker_offsets, new.worker_offsets)
        assert torch.equal(plan.split_offsets, new.split_offsets)
        items = int(plan.split_offsets[-1])
        assert torch.equal(plan.work_items[:items], new.work_items[:items])


@pytest.mark.parametrize("fixed", [0, 64])
def test_plan_covers_every_token_once(device, fixed):
    lengths = [0, 1, 130, 700, 64]
    lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    plan = snapmla.plan(lens, rows=4, max_seq_len=700, num_workers=3, fixed_split_tokens=fixed)
    assert plan.batch == 5 and plan.num_workers == 3 and plan.worker_offsets[-1] == plan.split_offsets[-1]
    seen = [0] * 5
    for item, (request, first, end, partial) in enumerate(plan.work_items[: int(plan.split_offsets[-1])].tolist()):
        assert first == seen[request] and partial == item
        assert plan.split_offsets[request] <= item < plan.split_offsets[request + 1]
        seen[request] = end
    assert seen == lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine(device, dtype):
    """Partials of random weight, some empty with NaN in out; request 1 has none at all."""
    torch.manual_seed(1)
    partial_out, partial_lse = torch.randn(6, 2 * 3, 512), torch.randn(6, 2 * 3) * 20
    partial_lse[2], partial_out[2] = -torch.inf, torch.nan
    partial_lse[4:, 5], partial_out[4:, 5] = -torch.inf, torch.nan
    offsets = [0, 4, 4, 6]
    split_offsets = torch.tensor(offsets, dtype=torch.int32)
    on = lambda x: x.to(device)
    out, lse = snapmla.combine(on(partial_out), on(partial_lse), on(split_offsets), s=2, out_dtype=dtype)
    assert out.shape == (3, 2, 3, 512) and out.dtype == dtype
    for b in range(3):
        part = slice(offsets[b], offsets[b + 1])
        weights, values = partial_lse[part].double(), partial_out[part].double()
        want_lse = weights.logsumexp(0) if len(weights) else torch.full((6,), -torch.inf, dtype=torch.float64)
        share = (weights - want_lse).exp().nan_to_num(0)[..., None]
        want = torch.where(share > 0, share * values.nan_to_num(0), 0).sum(0)
        got_lse = lse[b].cpu().flatten().double()
        assert torch.equal(got_lse.isinf(), want_lse.isinf())
        seen = ~want_lse.isinf()
        assert torch.allclose(got_lse[seen], want_lse[seen], rtol=2**-20, atol=2**-18)
        # 2^-19 of the largest partial (docs/numerics.md), which is below 6; and the final rounding to bf16.
        rounding = 2**-8 if dtype == torch.bfloat16 else 0
        error = (out[b].cpu().flatten(0, 1).double() - want).abs()
        assert (error <= rounding * want.abs() + 6 * 2**-19).all()
    again = torch.empty_like(out), torch.empty_like(lse)
    snapmla.combine(on(partial_out), on(partial_lse), on(split_offsets), out=again[0], lse=again[1])
    assert torch.equal(again[0], out) and torch.equal(again[1], lse)


def test_combine_merges_two_halves(device):
    """Decode context parallelism: two caches, each half the tokens, merged by lse, are as good as one cache."""
    problem = Problem(Case((256,), format="bf16", causal=False), device)
    whole_out, whole_lse = problem.solve()
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        lens = torch.tensor([128], dtype=torch.int32, device=device)
        parts.append(snapmla.decode(*problem.query(), problem.cache, problem.block_table[:, half], lens,
                                    snapmla.plan(lens, rows=4), problem.softmax_scale, causal=False,
                                    out_dtype=torch.float32))
    partial_out = torch.cat([out.flatten(1, 2) for out, _ in parts])
    partial_lse = torch.cat([lse.flatten(1, 2) for _, lse in parts])
    splits = torch.tensor([0, 2], dtype=torch.int32, device=device)
    out, lse = snapmla.combine(partial_out, partial_lse, splits, out_dtype=torch.float32)
    assert_matches(problem, out, lse)
    assert torch.allclose(lse, whole_lse, rtol=0, atol=1e-4) and torch.allclose(out, whole_out, rtol=0.05, atol=0.05)
