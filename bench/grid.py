#!/usr/bin/env python3
"""Times decode over a grid of shapes, ours and other kernels, in one run and into one table.

    bench/grid.py --program build/cuda/apps/snapmla --library libflashmla.so --library libfp8.so --csv decode.csv

Goes group by group, a group being one batch of cached tokens under all --heads and --s: `snapmla bench kernel` times ours in
one process, then each peer runs here over pages made once (peers.py says how both are timed alike). A group takes
seconds, so that the clocks of a line's times are alike.

The table begins with lines of `#`: device, driver, commit, command, peers, and the limits measured at the start. Columns:

    us, us_p10, us_p90   decode and combine over FP8 pages; us_with_quant: behind quantize_q, which a BF16 peer does not need
    gbps, tflops         of 644 bytes a token; of 2 * (576 + 512) flops a query row and token
    limit_us, pct_limit  max(bytes / DRAM read, rows * tokens * (2048 / e4m3 rate + 128 / bf16 rate)), sustained rates
    rel_err              largest of eight rows against fp64 attention over the stored numbers
    us_flashmla_bf16, us_vllm_fp8, speedup_vs_bf16
                         the peers over a BF16 and an FP8 cache; us_flashmla_bf16 / us_with_quant

What a kernel cannot do or what fails is printed and stays an empty cell; ours failing also makes the exit status 1.
"""

import argparse
import csv
import datetime
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import peers
import torch
from peers import Shape, size

OURS_TOKEN_BYTES = 644  # 512 e4m3, 64 bf16, one fp32 scale
OURS = ["us", "us_p10", "us_p90", "us_with_quant", "gbps", "tflops", "clock_mhz"]
COLUMNS = ["batch", "seq_q", "heads", "seq_len", *OURS, "limit_us", "pct_limit", "rel_err", "us_flashmla_bf16",
           "us_vllm_fp8", "speedup_vs_bf16"]


def make_groups(options):
    """Lists of shapes with the same cache, each with the options that name the cache to `snapmla bench kernel`."""
    pairs = [(heads, s) for heads in options.heads for s in options.s]
    for batch in options.batch:
        for seq_len in options.seq_len:
            yield (["--batch", str(batch), "--seq-len", str(seq_len)],
                   [Shape(f"{batch}x{seq_len}x{heads}x{s}") for heads, s in pairs])
    for text in options.ragged:
        yield ["--ragged", text], [Shape(text, heads, s) for heads, s in pairs]


def one_line(error):
    return str(error).strip().partition("\n")[0]


def time_ours(options, cache):
    """Rows of `snapmla bench kernel` by (heads, s), or None where it failed."""
    lists = [",".join(str(n) for n in numbers) for numbers in (options.heads, options.s)]
    try:
        document = peers.bench_kernel(
            options, "--kv-cache-dtype", "fp8", "--check", "--no-limits", "--max-cache-bytes",
            str(options.max_cache_bytes), "--heads", lists[0], "--s", lists[1], *cache)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        print(f"snapmla {' '.join(cache)}: failed: {one_line(error)}", flush=True)
        return None
    return {(row["heads"], row["seq_q"]): row for row in document["results"]}


def time_peer(peer, shapes, options, l2_bytes):
    """Microseconds by (heads, s)."""
    cache_bytes = shapes[0].cache_bytes(peer.fp8)
    if cache_bytes > options.max_cache_bytes:
        print(f"{peer.name} {shapes[0].text}: skipped: its cache of {cache_bytes / 2**30:.1f} GiB is beyond "
              "--max-cache-bytes", flush=True)
        return {}
    times, pages = {}, None
    for shape in shapes:
        try:
            pages = pages or peers.Pages(shape, peer.fp8, l2_bytes)
            row = peers.measure_peer(peer, shape, pages, options)
        except Exception as error:  # whatever a peer raises costs its own cell only
            print(f"{peer.name} {shape.text}, heads {shape.heads}, s {shape.s}: failed: {one_line(error)}", flush=True)
            continue
        print(peers.line(row), flush=True)
        times[shape.heads, shape.s] = row["us"]
    return times


def limit_us(shape, limits):
    """As `snapmla bench kernel` has it: sustained rates, no launch in it. None without limits."""
    if not limits:
        return None
    gbps, fp8, bf16 = (limits[name]["sustained"] for name in ("read_gbps", "fp8_tflops", "bf16_tflops"))
    pairs = shape.tokens * shape.s * shape.heads
    return max(shape.tokens * OURS_TOKEN_BYTES / gbps / 1e3, pairs * (2048 / fp8 + 128 / bf16) / 1e6)


def make_row(shape, ours, times, limits):
    """A line of the table; `ours` is {} and a time None where there is none."""
    limit = limit_us(shape, limits)
    row = {"batch": shape.batch, "seq_q": shape.s, "heads": shape.heads, "seq_len": shape.ragged or shape.longest,
           **{key: ours.get(key) for key in OURS}, "limit_us": limit, "rel_err": ours.get("rel_err"), **times}
    if limit and ours.get("us"):
        row["pct_limit"] = 100 * limit / ours["us"]
    if row["us_flashmla_bf16"] and ours.get("us_with_quant"):
        row["speedup_vs_bf16"] = row["us_flashmla_bf16"] / ours["us_with_quant"]
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def measure_group(cache, shapes, columns, options, l2_bytes, limits):
    """Rows of a group, and whether ours ran."""
    ours = time_ours(options, cache)
    times = {}
    for column, peer in columns.items():
        times[column] = time_peer(peer, shapes, options, l2_bytes) if peer else {}
        torch.cuda.empty_cache()  # the next in line needs the memory
    rows = [make_row(shape, (ours or {}).get((shape.heads, shape.s), {}),
                     {column: times[column].get((shape.heads, shape.s)) for column in columns}, limits)
            for shape in shapes]
    return rows, ours is not None


def output_of(*command):
    """The first line a command prints; None where it cannot run."""
    try:
        return one_line(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return None


def head_lines(options, columns, document):
    """What the table was measured with."""
    here = Path(__file__).parent
    commit = options.commit or output_of("git", "-C", str(here), "describe", "--always", "--dirty") or "unknown"
    yield f"{document['device']}; driver " + (
        output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown")
    yield f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC; snapmla {document['version']} at {commit}"
    yield shlex.join(["bench/grid.py", *sys.argv[1:]])
    yield "; ".join(f"{column}: {peer.name if peer else 'none'}" for column, peer in columns.items())
    for name, rate in (document["limits"] or {}).items():
        yield f"{name}: {rate['sustained']} sustained, {rate['burst']} in a burst"


def summary(rows):
    below = [row for row in rows if row.get("speedup_vs_bf16") is not None and row["speedup_vs_bf16"] < 1]
    ratios = [row["speedup_vs_bf16"] for row in rows if row.get("speedup_vs_bf16") is not None]
    yield f"{len(rows)} points, {len(ratios)} of them beside the BF16 peer"
    if ratios:
        yield f"speedup_vs_bf16: least {min(ratios)}, median {statistics.median(ratios):.5g}, {len(below)} below 1.0"
    for row in below:
        yield (f"  batch {row['batch']}, seq_len {row['seq_len']}, heads {row['heads']}, seq_q {row['seq_q']}: "
               f"{row['speedup_vs_bf16']}")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = lambda text: [size(part) for part in text.split(",") if part]
    texts = lambda text: [part for part in text.split(",") if part]
    parser.add_argument("--program", required=True, help="the snapmla program")
    parser.add_argument("--batch", type=sizes, default="1,2,4,8,16,32,64,128")
    parser.add_argument("--seq-len", type=sizes, default="512,1k,4k,8k,16k,32k,64k,128k")
    parser.add_argument("--heads", type=sizes, default="8,16,32,64,128")
    parser.add_argument("--s", type=sizes, default="1,2,4", help="query tokens of each request")
    parser.add_argument("--ragged", type=texts, default="", help="REQUESTSxSEQ_LEN+...,...: groups behind the grid's")
    peers.add_timing_options(parser)
    parser.add_argument("--max-cache-bytes", type=size, default="60g", help="larger caches are not timed")
    parser.add_argument("--commit", help="what the table says was measured; else what git says here")
    parser.add_argument("--csv", help="write the table to this file, group by group")
    return parser.parse_args()


def main():
    options = parse_options()
    l2_bytes = peers.start()
    found = peers.find_peers(options.library)
    columns = {"us_flashmla_bf16": next((peer for peer in found if not peer.fp8), None),
               "us_vllm_fp8": next((peer for peer in found if peer.fp8), None)}
    # The limits, once: a shape has to be given, so the smallest.
    document = peers.bench_kernel(options, "--shape", "1x1x1", "--kv-cache-dtype", "fp8")
    rows, complete = [], True
    with open(options.csv or os.devnull, "w", newline="") as file:
        for text in head_lines(options, columns, document):
            print(f"# {text}", file=file)
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        file.flush()
        for cache, shapes in make_groups(options):
            group, ran = measure_group(cache, shapes, columns, options, l2_bytes, document["limits"])
            complete = complete and ran
            rows += group
            table.writerows(group)
            file.flush()
    for text in summary(rows):
        print(text)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
