#!/usr/bin/env python3
"""Times what a decode call costs the host: from Python, outputs preallocated, launches included, the device not waited for.

    bench/host_time.py [--device cuda] [--shape 1x1024x16]

Calls are made in runs short enough never to fill the launch queue, with a wait between runs; median of the runs' means. Beside
ours, where it imports: FlashMLA. Each is timed with its plan made beforehand.
"""

import argparse
import statistics
import time

import torch

import snapmla
from snapmla.flash_mla import flash_mla_with_fp8_kvcache, flash_mla_with_kvcache, get_mla_metadata

CALLS, RUNS = 50, 200
SCALE = 192**-0.5


def measure(call, device):
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    means = []
    for _ in range(RUNS):
        wait()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        means.append(1e6 * (time.perf_counter() - begin) / CALLS)
    wait()
    return statistics.median(means)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="1x1024x16", help="batch x tokens x heads")
    args = parser.parse_args()
    device = torch.device(args.device)
    batch, tokens, heads = map(int, args.shape.split("x"))
    pages = -(-tokens // 64)
    table = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    seq_lens = torch.full((batch,), tokens, dtype=torch.int32, device=device)
    q = torch.randn(batch, 1, heads, 576, device=device).bfloat16()
    kv = torch.randn(batch * pages, 64, 576, device=device).bfloat16()
    plan = snapmla.plan(seq_lens, rows=heads)
    out = torch.empty(batch, 1, heads, 512, dtype=torch.bfloat16, device=device)
    lse = torch.empty(batch, 1, heads, device=device)
    given = dict(out=out, lse=lse, workspace=plan.workspace(1, heads))
    fp8, bf16 = snapmla.pack(kv), snapmla.pack(kv, "bf16")
    query = snapmla.quantize_q(q[..., :512], q[..., 512:])
    latent, rope = q[..., :512].contiguous(), q[..., 512:].contiguous()
    meta = {name: get_mla_metadata()[0] for name in ("bf16", "fp8")}
    kv_flash = kv[:, :, None]
    calls = {
        "decode, FP8 pages": lambda: snapmla.decode(*query, fp8, table, seq_lens, plan, SCALE, **given),
        "decode, BF16 pages": lambda: snapmla.decode(latent, rope, None, bf16, table, seq_lens, plan, SCALE, **given),
        "decode, FP8 pages, allocating": lambda: snapmla.decode(*query, fp8, table, seq_lens, plan, SCALE),
        "quantize_q": lambda: snapmla.quantize_q(latent, rope, out=query),
        "plan.update": lambda: plan.update(seq_lens),
        "drop-in, BF16": lambda: flash_mla_with_kvcache(q, kv_flash, table, seq_lens, 512, meta["bf16"], None, SCALE),
        "drop-in, FP8": lambda: flash_mla_with_fp8_kvcache(q, fp8, table, seq_lens, 512, meta["fp8"], None, SCALE),
    }
    try:
        import flash_mla

        theirs = flash_mla.get_mla_metadata()[0]
        calls["FlashMLA, BF16"] = lambda: flash_mla.flash_mla_with_kvcache(q, kv_flash, table, seq_lens, 512, theirs, None, SCALE)
    except ImportError:
        print("FlashMLA is not installed")
    print(f"torch {torch.__version__}, {device}, {args.shape}; host microseconds a call")
    for name, call in calls.items():
        call()
        print(f"{measure(call, device):8.1f}  {name}")


if __name__ == "__main__":
    main()
