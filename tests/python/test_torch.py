"""What torch asks of ops: schemas, fake kernels, torch.compile, graphs, threads, streams, and memory that stays."""

import os
import shutil
import sysconfig
import threading
from pathlib import Path

import pytest
import torch
from problems import Case, Problem

import snapmla


def samples(device):
    """Arguments for every op that a compiler may see."""
    problem = Problem(Case((70, 5), s=2), device)
    bf16 = Problem(Case((70, 5), s=2, format="bf16", layout="planes"), device)
    bf16_records = Problem(Case((70, 5), s=2, format="bf16"), device)
    plan, query = problem.plan(), problem.query()
    ops, like = torch.ops.snapmla, torch.empty_like
    int32 = lambda *values: torch.tensor(values, dtype=torch.int32, device=device)
    records, slots = problem.cache.op_args, torch.arange(70, device=device)
    decode = (problem.block_table, problem.seq_lens, plan.data, plan.num_workers, 0.1, True)
    out, lse = problem.solve()
    fetch = (problem.block_table, int32(0, 1), int32(0, 3, 5))
    partials = (torch.randn(3, 8, 512, device=device), torch.randn(3, 8, device=device), int32(0, 1, 3))
    yield ops.quantize_q.default, (problem.q_latent, problem.q_rope), {}
    yield ops.quantize_q.default, (torch.cat([problem.q_latent, problem.q_rope], -1), None), {}
    yield ops.quantize_q.out, (problem.q_latent, problem.q_rope, None, None, True, "pow2"), dict(
        q_latent_out=like(query[0]), q_rope_out=like(query[1]), q_scale_out=like(query[2]))
    yield ops.append_kv.default, (problem.kv[0], slots, *records), {}
    yield ops.append_kv.default, (bf16.kv[0], slots, *bf16.cache.op_args), {}
    yield ops.fetch_kv.default, (*records, *fetch, 5), {}
    yield ops.fetch_kv.out, (*records, *fetch), dict(
        latent_out=problem.q_latent.new_empty(5, 512), rope_out=problem.q_latent.new_empty(5, 64))
    yield ops.plan.default, (problem.seq_lens, plan.num_workers, 0, plan.data), {}
    yield ops.decode.default, (*query, *records, *decode), {}
    yield ops.decode.default, (*bf16.query(), *bf16.cache.op_args, *decode, torch.float32), {}
    yield ops.decode.records, (*query, problem.cache.records, *decode), {}
    yield ops.decode.records, (*bf16_records.query(), bf16_records.cache.records, *decode, torch.float32), {}
    yield ops.decode.records_out, (*query, problem.cache.records, *decode, like(out), like(lse), None), {}
    yield ops.decode.out, (*query, *records, *decode, like(out), like(lse), None), {}
    yield ops.decode.out, (*query, *records, *decode, like(out), like(lse), plan.workspace(2, 4)), {}
    yield ops.combine.default, (*partials, 2), {}
    yield ops.combine.out, partials, dict(out=like(out), lse=like(lse))


def test_opcheck(device):
    """Schema (what is written is declared), fake kernels, and tracing with dynamic shapes. No op has a backward, and
    none claims one: the autograd test passes because nothing is registered there."""
    for op, arguments, keywords in samples(device):
        tests = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
        tensors = [x for x in (*arguments, *keywords.values()) if isinstance(x, torch.Tensor)]
        if any(x.dtype == torch.float8_e4m3fn for x in tensors):
            tests.remove("test_schema")  # compares with torch.allclose, which has no FP8
            check_inputs_are_left_alone(op, arguments, keywords)
        torch.library.opcheck(op, arguments, keywords, test_utils=tests)


def check_inputs_are_left_alone(op, arguments, keywords):
    named = dict(zip((a.name for a in op._schema.arguments), arguments)) | keywords
    written = {a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    inputs = {name: x for name, x in named.items() if isinstance(x, torch.Tensor) and name not in written}
    before = {name: x.clone().flatten().view(torch.uint8) for name, x in inputs.items()}
    op(*arguments, **keywords)
    for name, x in inputs.items():
        assert torch.equal(x.clone().flatten().view(torch.uint8), before[name]), name


def step(q_latent, q_rope, kv, slots, cache, block_table, seq_lens, plan, scale):
    """What an engine runs a layer and step; projections stand at both ends for what surrounds the ops."""
    snapmla.append_kv(kv, slots, cache)
    plan.update(seq_lens)
    query = snapmla.quantize_q(q_latent * 0.5, q_rope * 0.5)
    out, lse = snapmla.decode(*query, cache, block_table, seq_lens, plan, scale)
    return out.float() + 1, lse


def step_out(out, lse, *arguments):
    """The same into given tensors."""
    q_latent, q_rope, kv, slots, cache, block_table, seq_lens, plan, scale = arguments
    snapmla.append_kv(kv, slots, cache)
    plan.update(seq_lens)
    query = snapmla.quantize_q(q_latent * 0.5, q_rope * 0.5)
    snapmla.decode(*query, cache, block_table, seq_lens, plan, scale, out=out, lse=lse)
    return out.float() + 1, lse


@pytest.mark.skipif(
    not (shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_paths()["include"], "Python.h").exists()),
    reason="torch.compile needs a C++ compiler and Python.h")
@pytest.mark.parametrize("into_out", [False, True])
@pytest.mark.parametrize("layout", ["records", "planes"])
def test_compile(device, layout, into_out):
    """fullgraph: no op breaks the graph. The pool is updated in place, and new lengths need no new graph."""
    torch._dynamo.reset()
    problem, twin = (Problem(Case((70, 5), layout=layout), device) for _ in range(2))
    compiled = torch.compile(step_out if into_out else step, fullgraph=True)
    for lengths in ((70, 5), (64, 1), (69, 3)):
        results = []
        for this, run in ((problem, compiled), (twin, step_out if into_out else step)):
            this.seq_lens.copy_(torch.tensor(lengths, dtype=torch.int32))
            slots = torch.tensor([lengths[0] - 1, -1], device=device)
            arguments = (this.q_latent, this.q_rope, this.kv[0][:2] * lengths[0], slots, this.cache, this.block_table,
                         this.seq_lens, this.plan(), this.softmax_scale)
            if into_out:
                lse = torch.empty(2, 1, 4, device=device)
                arguments = (torch.empty(2, 1, 4, 512, dtype=torch.bfloat16, device=device), lse, *arguments)
            results.append([x.clone() for x in run(*arguments)])
        for got, want in zip(*results):
            assert torch.equal(got, want)
        for name in ("latent", "rope", "scale"):
            a, b = (getattr(this.cache, name).contiguous().view(torch.uint8) for this in (problem, twin))
            assert torch.equal(a, b)


def test_two_threads(device):
    """Two threads, each with a problem and on CUDA a stream of its own, get what one alone gets."""
    problems = [Problem(Case((300, 65), seed=seed), device) for seed in (1, 2)]
    wants = [problem.solve() for problem in problems]
    if device.type == "cuda":
        torch.cuda.synchronize()
    failures = []

    def work(problem, want):
        try:
            stream = torch.cuda.Stream() if device.type == "cuda" else None
            with torch.cuda.stream(stream):
                for _ in range(20):
                    out, lse = problem.solve()
                    if stream:
                        stream.synchronize()
                    assert torch.equal(out, want[0]) and torch.equal(lse, want[1])
        except BaseException as failure:  # a thread's exception must reach the test
            failures.append(failure)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(problems, wants)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_memory_is_steady(device):
    """10,000 calls leave nothing behind: every handle that an op is given or makes is released."""
    problem = Problem(Case((5,), heads=1), device)
    plan, query = problem.plan(), problem.query()
    out, lse = problem.solve()
    workspace = plan.workspace(1, 1)

    def calls(count):
        for _ in range(count):
            snapmla.quantize_q(problem.q_latent, problem.q_rope, out=query)
            plan.update(problem.seq_lens)
            snapmla.decode(*query, problem.cache, problem.block_table, problem.seq_lens, plan, 0.1, out=out, lse=lse,
                           workspace=workspace)
            snapmla.decode(*query, problem.cache, problem.block_table, problem.seq_lens, plan, 0.1)
            with pytest.raises(ValueError):
                plan.update(out)

    calls(500)
    tensors = [*query, problem.cache.records, problem.block_table, problem.seq_lens, plan.data, out, lse, workspace]
    holders = [x._use_count() for x in tensors]
    before = resident_bytes()
    allocated = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    calls(2500)
    if device.type == "cuda":
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == allocated
    assert [x._use_count() for x in tensors] == holders
    # Outputs that nobody frees would be 5,000 times some kilobytes; the allocator's own wandering is below that.
    assert resident_bytes() - before < 1 << 20


def test_ops_do_not_allocate_with_out(cuda_device):
    problem = Problem(Case((300, 65)), cuda_device)
    plan, query = problem.plan(), problem.query()
    out, lse = problem.solve()
    workspace = plan.workspace(1, 4)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    snapmla.quantize_q(problem.q_latent, problem.q_rope, out=query)
    plan.update(problem.seq_lens)
    snapmla.decode(*query, problem.cache, problem.block_table, problem.seq_lens, plan, 0.1, out=out, lse=lse,
                   workspace=workspace)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_ops_do_not_synchronize(cuda_device):
    problem = Problem(Case((300, 65)), cuda_device)
    plan = problem.plan()
    torch.cuda.set_sync_debug_mode("error")
    try:
        query = problem.query()
        plan.update(problem.seq_lens)
        snapmla.decode(*query, problem.cache, problem.block_table, problem.seq_lens, plan, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_graph(cuda_device):
    """1,000 replays of a captured step, lengths changing between them, give what separate calls give."""
    problem = Problem(Case((700, 300, 65), heads=16), cuda_device)
    plan, query = problem.plan(), problem.query()
    out, lse = (torch.empty_like(x) for x in problem.solve())
    workspace = plan.workspace(1, 16)

    def run():
        snapmla.quantize_q(problem.q_latent, problem.q_rope, out=query)
        plan.update(problem.seq_lens)
        snapmla.decode(*query, problem.cache, problem.block_table, problem.seq_lens, plan, problem.softmax_scale,
                       out=out, lse=lse, workspace=workspace)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    random = torch.Generator().manual_seed(1)
    lengths = [torch.randint(0, 66, (3,), generator=random, dtype=torch.int32) * torch.tensor([10, 4, 1]).int()
               for _ in range(1000)]
    for i, lens in enumerate(lengths):
        problem.seq_lens.copy_(lens)
        graph.replay()
        if i % 50 == 0:
            want_out, want_lse = problem.solve()
            assert torch.equal(out, want_out) and torch.equal(lse, want_lse)


def test_other_device(cuda_device):
    """Tensors decide the device, not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    here, there = (Problem(Case((70, 5)), torch.device(f"cuda:{i}")) for i in (0, 1))
    want = [x.cpu() for x in here.solve()]
    with torch.cuda.device(0):
        assert all(torch.equal(x.cpu(), y) for x, y in zip(there.solve(), want))
        assert torch.cuda.current_device() == 0


def test_doctor():
    report = snapmla.doctor()
    assert report.startswith(f"snapmla {snapmla.__version__}, torch {torch.__version__}")
    assert "works" in report and "FAILED" not in report
