#!/usr/bin/env python3
"""Times decode beside other MLA decode kernels, shape by shape: ours, the peers, ours again.

    bench/peers.py --program build/cuda/apps/snapmla --shape 128x16kx128,1x4kx128 --csv peers.csv
    bench/peers.py --program ... --library libpeer.so          # a peer behind the C interface below

Ours is timed by `snapmla bench kernel` in a process of its own, right before and right after the peers of the same
shape, so that a drift of clocks shows as a gap between the two; the peers run here, through PyTorch. Both sides are
timed alike: a graph of several whole calls (main kernel and combine, the plan made beforehand), sets of pages in turn
so that the last-level cache is cold, events around replays, median with 10th and 90th percentile. Errors are against
fp64 attention over the numbers each kernel is given, so that rounding the cache to a kernel's format does not count.

Peers, where they import: `flash_mla` (BF16 cache, 1,152 bytes a token) and vLLM's dense FP8 kernel (one scale for the
whole cache, 576 bytes a token). With --library, any number of shared libraries that export

    const char* peer_name();
    int peer_cache_is_fp8();       // 0: q and kv are bf16; 1: e4m3, with one scale each
    long long peer_workspace_bytes(int batch, int s, int heads);
    int peer_plan(const Call*);    // fills the workspace for these lengths; 0, or a CUDA error
    int peer_decode(const Call*);  // the whole call, enqueued on the stream

with the struct Call below: q [batch, s, heads, 576], kv [num_pages, 64, 576], out bf16 [batch, s, heads, 512].
Needs PyTorch with CUDA and a Hopper GPU; nothing else. bench/grid.py times hundreds of shapes into one table.
"""

import argparse
import csv
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

PAGE_TOKENS, LATENT, TOKEN_DIM = 64, 512, 576
SOFTMAX_SCALE = 192**-0.5
E4M3_MAX = 448.0
REPLAY_US, MOST_CALLS = 2000, 20
CHECKED_ROWS = 8
FIELDS = ["kernel", "batch", "seq_q", "heads", "seq_len", "dtype", "us", "us_p10", "us_p90", "us_with_quant", "gbps",
          "tflops", "clock_mhz", "rel_err", "gain", "calls", "sets"]


class Shape:
    """BATCHxSEQ_LENxHEADS, BATCHxSEQ_LENxHEADSxS, or REQUESTSxSEQ_LEN+... with --heads and --s."""

    def __init__(self, text, heads=128, s=1):
        self.ragged = text if "+" in text else None
        if self.ragged:
            groups = [[size(n) for n in part.split("x")] for part in text.split("+")]
            self.heads, self.s = heads, s
        else:
            numbers = [size(n) for n in text.split("x")]
            groups, self.heads, self.s = [numbers[:2]], numbers[2], numbers[3] if len(numbers) > 3 else 1
        self.text = text
        self.seq_lens = [seq_len for requests, seq_len in groups for _ in range(requests)]
        self.batch, self.tokens, self.longest = len(self.seq_lens), sum(self.seq_lens), max(self.seq_lens)
        self.pages = sum(-(-n // PAGE_TOKENS) for n in self.seq_lens)
        self.flops = 2 * self.tokens * self.s * self.heads * (TOKEN_DIM + LATENT)

    def cache_bytes(self, fp8):
        """Of a peer's pages."""
        return self.pages * PAGE_TOKENS * TOKEN_DIM * (1 if fp8 else 2)

    def arguments(self):
        """The same shape for `snapmla bench kernel`."""
        if self.ragged:
            return ["--ragged", self.text, "--heads", str(self.heads), "--s", str(self.s)]
        return ["--shape", self.text]


def size(text):
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    return int(float(text[:-1]) * units[text[-1].lower()]) if text[-1].lower() in units else int(text)


def encode(x, fp8):
    """A tensor in bf16 or e4m3, and its scale."""
    if not fp8:
        return x.to(torch.bfloat16), torch.ones(1, device=x.device)
    scale = (x.abs().amax() / E4M3_MAX).reshape(1).float()
    scale = torch.where(scale > 0, scale, 1)  # all zeros
    return (x / scale).to(torch.float8_e4m3fn), scale


class Pages:
    """The filled cache of a shape's batch in one format, for any heads and query tokens. Latents have a mean."""

    def __init__(self, shape, fp8, l2_bytes, device="cuda"):
        self.device = device
        set_bytes = shape.cache_bytes(fp8)
        self.sets = 1 if set_bytes >= 2 * l2_bytes else min(1024, -(-4 * l2_bytes // set_bytes))
        generator = torch.Generator(device).manual_seed(1)
        normal = lambda *sizes: torch.randn(*sizes, generator=generator, device=device)
        rows = normal(64, PAGE_TOKENS, TOKEN_DIM)
        rows[..., :LATENT] += normal(LATENT)
        rows, self.kv_scale = encode(rows, fp8)
        self.kv = torch.empty(shape.pages * self.sets, PAGE_TOKENS, TOKEN_DIM, dtype=rows.dtype, device=device)
        to, rows = self.kv.view(torch.int64), rows.view(torch.int64)  # wide words copy fast
        whole = len(to) // len(rows) * len(rows)
        to[:whole].view(-1, *rows.shape).copy_(rows)
        to[whole:].copy_(rows[: len(to) - whole])
        self.seq_lens = torch.tensor(shape.seq_lens, dtype=torch.int32, device=device)
        self.tables = self.block_tables(shape)

    def block_tables(self, shape):
        """[sets, batch, max_pages]: every set its own pages, all in random order; entries past a length are 0."""
        generator = torch.Generator(self.device).manual_seed(2)
        order = torch.randperm(len(self.kv), generator=generator, device=self.device).to(torch.int32)
        max_pages = -(-shape.longest // PAGE_TOKENS)
        places = torch.arange(max_pages, device=self.device)
        used = places < -(-self.seq_lens // PAGE_TOKENS).unsqueeze(1)
        tables = torch.zeros(self.sets, shape.batch, max_pages, dtype=torch.int32, device=self.device)
        tables[:, used] = order.view(self.sets, -1)
        return tables


class Problem:
    """Random queries of a shape over the pages of its batch. They make logits with a deviation of 1.2."""

    def __init__(self, shape, pages, fp8):
        self.shape = shape
        self.kv, self.kv_scale, self.sets = pages.kv, pages.kv_scale, pages.sets
        self.seq_lens, self.tables = pages.seq_lens, pages.tables
        generator = torch.Generator(pages.device).manual_seed(3)
        q = torch.randn(shape.batch, shape.s, shape.heads, TOKEN_DIM, generator=generator, device=pages.device)
        self.q, self.q_scale = encode(q * (1.2 / (SOFTMAX_SCALE * math.sqrt(TOKEN_DIM))), fp8)

    def exact_row(self, request, row):
        """fp64 attention of one query row of set 0."""
        shape = self.shape
        i, head = divmod(row, shape.heads)
        tokens = max(0, shape.seq_lens[request] - (shape.s - 1 - i))
        pages = self.tables[0, request, : -(-tokens // PAGE_TOKENS)].long()
        k = self.kv.view(torch.uint8)[pages].view(self.kv.dtype)  # as bytes: indexing is not for every FP8 type
        k = k.reshape(-1, TOKEN_DIM)[:tokens].double() * self.kv_scale.double()
        q = self.q[request, i, head].double() * self.q_scale.double()
        return torch.softmax(SOFTMAX_SCALE * (k @ q), 0) @ k[:, :LATENT]

    def errors(self, out):
        """Largest relative error of rows spread over the batch, and the gain over all of them."""
        shape = self.shape
        rows = shape.s * shape.heads
        count = min(CHECKED_ROWS, shape.batch * rows)
        worst, product, norm = 0.0, 0.0, 0.0
        for n in range(count):
            request = n * (shape.batch - 1) // (count - 1) if count > 1 else 0
            row = (n * rows // count + n) % rows
            exact, got = self.exact_row(request, row), out.reshape(shape.batch, rows, LATENT)[request, row].double()
            error = ((got - exact).norm() / exact.norm()).item()
            worst = error if math.isnan(error) else max(worst, error)
            product, norm = product + (got @ exact).item(), norm + (exact @ exact).item()
        return worst, product / norm


class Call(ctypes.Structure):
    _fields_ = [("batch", ctypes.c_int), ("s", ctypes.c_int), ("heads", ctypes.c_int), ("max_pages", ctypes.c_int),
                ("num_pages", ctypes.c_longlong), ("softmax_scale", ctypes.c_float), ("causal", ctypes.c_int),
                ("q", ctypes.c_void_p), ("kv", ctypes.c_void_p), ("block_table", ctypes.c_void_p),
                ("seq_lens", ctypes.c_void_p), ("out", ctypes.c_void_p), ("lse", ctypes.c_void_p),
                ("workspace", ctypes.c_void_p), ("q_scale", ctypes.c_void_p), ("kv_scale", ctypes.c_void_p),
                ("stream", ctypes.c_void_p)]


class LibraryPeer:
    """A peer behind the C interface of the module's docstring."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(Path(path).resolve()))
        self.library.peer_name.restype = ctypes.c_char_p
        self.library.peer_workspace_bytes.restype = ctypes.c_longlong
        self.name = self.library.peer_name().decode()
        self.fp8 = bool(self.library.peer_cache_is_fp8())

    def prepare(self, problem):
        shape = problem.shape
        empty = lambda *sizes, dtype: torch.empty(*sizes, dtype=dtype, device="cuda")
        out = empty(shape.batch, shape.s, shape.heads, LATENT, dtype=torch.bfloat16).fill_(math.nan)
        lse = empty(shape.batch, shape.s, shape.heads, dtype=torch.float32)
        bytes_needed = self.library.peer_workspace_bytes(shape.batch, shape.s, shape.heads)
        workspace = empty(bytes_needed, dtype=torch.uint8)

        def make(set_index):
            return Call(shape.batch, shape.s, shape.heads, problem.tables.shape[2], len(problem.kv), SOFTMAX_SCALE, 1,
                        problem.q.data_ptr(), problem.kv.data_ptr(), problem.tables[set_index].data_ptr(),
                        problem.seq_lens.data_ptr(), out.data_ptr(), lse.data_ptr(), workspace.data_ptr(),
                        problem.q_scale.data_ptr(), problem.kv_scale.data_ptr(),
                        torch.cuda.current_stream().cuda_stream)

        def enqueue(function, set_index):
            call = make(set_index)
            if (status := function(ctypes.byref(call))) != 0:
                raise RuntimeError(f"{self.name}: CUDA error {status}")

        enqueue(self.library.peer_plan, 0)

        def run(set_index):
            enqueue(self.library.peer_decode, set_index)
            return out

        run.keeps = (out, lse, workspace)
        return run


class FlashMlaPeer:
    """The flash_mla package: dense decode over a BF16 cache."""

    name, fp8 = "flash_mla", False

    def __init__(self):
        import flash_mla

        self.module = flash_mla

    def prepare(self, problem):
        shape = problem.shape
        plan, splits = self.module.get_mla_metadata(problem.seq_lens, shape.s * shape.heads, 1)
        kv = problem.kv.unsqueeze(2)

        def run(set_index):
            out, _ = self.module.flash_mla_with_kvcache(problem.q, kv, problem.tables[set_index], problem.seq_lens,
                                                        LATENT, plan, splits, SOFTMAX_SCALE, True)
            return out

        return run


class VllmFp8Peer:
    """vLLM's dense FP8 decode: latent and rope in e4m3, one scale for the cache and one for the queries."""

    name, fp8 = "vllm_dense_fp8", True

    def __init__(self):
        import vllm._flashmla_extension_C  # noqa: F401 (registers the operators)

        self.ops = torch.ops._flashmla_extension_C

    def prepare(self, problem):
        shape = problem.shape
        plan, splits = self.ops.get_mla_decoding_metadata_dense_fp8(problem.seq_lens, shape.s * shape.heads, 1)
        kv = problem.kv.unsqueeze(2)

        def run(set_index):
            return self.ops.fwd_kvcache_mla_fp8(problem.q, kv, LATENT, problem.seq_lens, problem.tables[set_index],
                                                SOFTMAX_SCALE, True, plan, splits, problem.q_scale,
                                                problem.kv_scale)[0]

        return run


def find_peers(libraries):
    peers = [LibraryPeer(path) for path in libraries]
    for kind in (FlashMlaPeer, VllmFp8Peer):
        try:
            peers.append(kind())
        except ImportError:
            print(f"{kind.name}: not installed")
    return peers


def elapsed_us(run, count):
    """Microseconds between events around each of `count` runs."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [1000 * begin.elapsed_time(end) for begin, end in zip(events, events[1:])]


def capture(run):
    """A graph of what `run` enqueues. torch.cuda.graph() collects garbage first, which takes longer than the replays."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    graph.capture_begin()
    try:
        run()
    finally:
        graph.capture_end()
    return graph


def measure(run, sets, repeat, pause_ms):
    """Median, p10, p90 of microseconds a call, and the calls in a replay."""
    run(0)
    us = max(1.0, elapsed_us(lambda: run(min(1, sets - 1)), 1)[0])
    calls = min(MOST_CALLS, max(2, math.ceil(REPLAY_US / us)))
    calls = -(-calls // sets) * sets

    def run_calls():
        for i in range(calls):
            run(i % sets)

    graph = capture(run_calls)
    graph.replay()
    torch.cuda.synchronize()
    time.sleep(pause_ms / 1000)  # as ours: the burst after a pause
    graph.replay()
    times = sorted(t / calls for t in elapsed_us(graph.replay, repeat))
    at = lambda part: times[round(part * (len(times) - 1))]
    return at(0.5), at(0.1), at(0.9), calls


def clock_mhz():
    try:
        return torch.cuda.clock_rate()
    except Exception:  # needs pynvml and a driver that answers
        return None


def measure_peer(peer, shape, pages, options):
    problem = Problem(shape, pages, peer.fp8)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        run = peer.prepare(problem)
        rel_err, gain = problem.errors(run(0))
        us, p10, p90, calls = measure(run, problem.sets, options.repeat, options.pause_ms)
        clock = clock_mhz()
        torch.cuda.synchronize()
    return {"kernel": peer.name, "batch": shape.batch, "seq_q": shape.s, "heads": shape.heads,
            "seq_len": shape.ragged or shape.longest, "dtype": "fp8" if peer.fp8 else "bf16", "us": us, "us_p10": p10,
            "us_p90": p90, "gbps": shape.tokens * TOKEN_DIM * (1 if peer.fp8 else 2) / us / 1e3,
            "tflops": shape.flops / us / 1e6, "clock_mhz": clock, "rel_err": rel_err, "gain": gain, "calls": calls,
            "sets": problem.sets}


def bench_kernel(options, *arguments):
    """What `snapmla bench kernel` measures, as its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.json"
        subprocess.run([options.program, "bench", "kernel", "--backend", "cuda", "--repeat", str(options.repeat),
                        "--pause-ms", str(options.pause_ms), "--json", str(path), *arguments],
                       check=True, stdout=subprocess.DEVNULL)
        document = json.loads(path.read_text())
    for skipped in document["skipped"]:
        print(f"{skipped['point']}: skipped: {skipped['reason']}")
    return document


def measure_ours(shape, options, label):
    document = bench_kernel(options, "--check", "--no-limits", *shape.arguments())
    return [{"kernel": f"snapmla ({label})", **{key: row[key] for key in FIELDS[1:]}} for row in document["results"]]


def measure_shape(shape, peers, options, l2_bytes):
    if options.program:
        yield from measure_ours(shape, options, "before")
    for peer in peers:
        yield measure_peer(peer, shape, Pages(shape, peer.fp8, l2_bytes), options)
        torch.cuda.empty_cache()  # ours, in a process of its own, needs the memory
    if options.program:
        yield from measure_ours(shape, options, "after")


def line(row):
    number = lambda key, width, digits: (f"{row[key]:>{width}.{digits}f}" if isinstance(row.get(key), (int, float))
                                         else " " * width)
    return (f"{row['kernel']:<18} {row['batch']:>4} {row['seq_q']:>2} {row['heads']:>4} {row['seq_len']!s:>20} "
            f"{row['dtype']:>5} {number('us', 10, 2)} {number('us_p10', 10, 2)} {number('us_p90', 10, 2)} "
            f"{number('gbps', 7, 0)} {number('tflops', 7, 1)} {number('clock_mhz', 6, 0)} {number('rel_err', 8, 5)}")


def add_timing_options(parser):
    parser.add_argument("--library", action="append", default=[], help="a shared library with the interface of peers.py")
    parser.add_argument("--repeat", type=int, default=30, help="timed replays of each point")
    parser.add_argument("--pause-ms", type=int, default=100, help="milliseconds of rest before a point's replays")


def start():
    """The size of the last-level cache, or the end where PyTorch has no GPU."""
    if not torch.cuda.is_available():
        sys.exit(f"{Path(sys.argv[0]).name}: PyTorch finds no CUDA device")
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    print(f"{torch.cuda.get_device_name()}, L2 {l2_bytes >> 20} MiB, PyTorch {torch.__version__}")
    return l2_bytes


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", help="the snapmla program; without it only the peers are timed")
    parser.add_argument("--shape", default="", help="BATCHxSEQ_LENxHEADS[xS],...")
    parser.add_argument("--ragged", default="", help="REQUESTSxSEQ_LEN+...,...; with --heads and --s")
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--s", type=int, default=1)
    add_timing_options(parser)
    parser.add_argument("--csv", help="write the lines to this file, one by one")
    options = parser.parse_args()
    shapes = [Shape(text) for text in options.shape.split(",") if text]
    shapes += [Shape(text, options.heads, options.s) for text in options.ragged.split(",") if text]
    if not shapes:
        parser.error("a shape is needed: --shape or --ragged")
    return options, shapes


def main():
    options, shapes = parse_options()
    l2_bytes = start()
    peers = find_peers(options.library)

    with open(options.csv or os.devnull, "w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for shape in shapes:
            for row in measure_shape(shape, peers, options, l2_bytes):
                print(line(row), flush=True)
                table.writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
