#!/usr/bin/env python3
"""Times what a decode call costs the host: from Python, launches included, the device not waited for.

    bench/host_time.py [--shape 1x1024x16] [--device cuda] [--json FILE]

Calls are made in runs short enough never to fill the launch queue, with a wait between runs, and the runs of all calls take turns, so
that a host's rising clock and warming caches meet them alike; median, 10th and 90th percentile of the runs' means. Plans are made beforehand. Beside ours, where `flash_mla` imports: FlashMLA's function, which allocates its
outputs, as our drop-in and "allocating" do.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import snapmla
from snapmla import flash_mla as drop_in

CALLS, RUNS, WARM_UP = 50, 200, 1.0  # seconds of calls before those measured: the host's clock rises with work
SCALE = 192**-0.5


def measure(named_calls, device):
    """Microseconds a call, by name: median, 10th and 90th percentile of the runs' means."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def run(call):
        wait()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1e6 * (time.perf_counter() - begin) / CALLS

    end = time.perf_counter() + WARM_UP
    while time.perf_counter() < end:
        for call in named_calls.values():
            run(call)
    means = {name: [] for name in named_calls}
    for _ in range(RUNS):
        for name, call in named_calls.items():
            means[name].append(run(call))
    wait()
    tenths = {name: statistics.quantiles(runs, n=10) for name, runs in means.items()}
    return {name: {"us": statistics.median(runs), "us_p10": tenths[name][0], "us_p90": tenths[name][-1]}
            for name, runs in means.items()}


def calls(batch, tokens, heads, device):
    """What is timed, by name."""
    pages = -(-tokens // 64)
    table = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    seq_lens = torch.full((batch,), tokens, dtype=torch.int32, device=device)
    q = torch.randn(batch, 1, heads, 576, device=device).bfloat16()
    kv = torch.randn(batch * pages, 64, 576, device=device).bfloat16()
    plan = snapmla.plan(seq_lens, rows=heads)
    out = torch.empty(batch, 1, heads, 512, dtype=torch.bfloat16, device=device)
    lse = torch.empty(batch, 1, heads, device=device)
    scratch = plan.workspace(1, heads)
    fp8, bf16 = snapmla.pack(kv), snapmla.pack(kv, "bf16")
    latent, rope = q.split((512, 64), -1)
    query = q8, r8, scale8 = snapmla.quantize_q(latent, rope)
    flash = lambda function, module, cache: lambda meta=module.get_mla_metadata()[0]: function(
        q, cache, table, seq_lens, 512, meta, None, SCALE)
    result = {
        # Every argument is written out: to unpack *query and **results costs 0.5 us, which is not the op's.
        "decode, FP8 pages": lambda: snapmla.decode(q8, r8, scale8, fp8, table, seq_lens, plan, SCALE, out=out, lse=lse,
                                                    workspace=scratch),
        "decode, FP8 pages, allocating": lambda: snapmla.decode(q8, r8, scale8, fp8, table, seq_lens, plan, SCALE),
        "decode, BF16 pages": lambda: snapmla.decode(latent, rope, None, bf16, table, seq_lens, plan, SCALE, out=out, lse=lse,
                                                     workspace=scratch),
        "decode, BF16 pages, allocating": lambda: snapmla.decode(latent, rope, None, bf16, table, seq_lens, plan, SCALE),
        "quantize_q": lambda: snapmla.quantize_q(latent, rope, out=query),
        "plan.update": lambda: plan.update(seq_lens),
        "drop-in, FP8": flash(drop_in.flash_mla_with_fp8_kvcache, drop_in, fp8),
        "drop-in, BF16": flash(drop_in.flash_mla_with_kvcache, drop_in, kv[:, :, None]),
    }
    one = torch.zeros(1, device=device)
    result["torch's add_ to one number, for comparison"] = lambda: one.add_(1)
    try:
        import flash_mla

        result["FlashMLA, BF16"] = flash(flash_mla.flash_mla_with_kvcache, flash_mla, kv[:, :, None])
    except ImportError:
        print("FlashMLA is not installed")
    return result


def processor():
    """The CPU's name: it is what is measured here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="1x1024x16", help="batch x tokens x heads")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    machine = f"{name}, {processor()}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine}; {args.shape}; host microseconds a call: median (10th to 90th percentile)")
    results = []
    for name, figures in measure(calls(*map(int, args.shape.split("x")), device), device).items():
        found = {"call": name, **{key: round(value, 2) for key, value in figures.items()}}
        results.append(found)
        print(f"{found['us']:8.2f}  ({found['us_p10']:.2f} to {found['us_p90']:.2f})  {name}", flush=True)
    if args.json:
        document = {"command": " ".join(["bench/host_time.py", *sys.argv[1:]]), "machine": machine,
                    "date": datetime.date.today().isoformat(), "commit": commit(),
                    "result": {"version": snapmla.__version__, "shape": args.shape, "calls_a_run": CALLS, "runs": RUNS,
                               "results": results}}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
