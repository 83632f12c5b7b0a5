#!/usr/bin/env python3
"""Measures the bundled model and keeps README.md's figures in step with the result files.

    scripts/results.py measure     # runs eval, the engine benchmark and loads, writes bench/results/*.json (about 20 minutes)
    scripts/results.py render      # redraws the blocks between the marks in README.md from those files
    scripts/results.py check       # fails if README.md is not what render would write

Every result file names its command, machine, date and commit; those measured on a GPU are made by hand, from the JSON
of the command they name. Standard library only.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
EVAL = "build/cpu/apps/snapmla eval models/tiny-mla --passkey --samples 20 --lengths 512,1k,2k,4k --json"
PAIRS = "build/cpu/apps/snapmla eval models/tiny-mla --tokens 0 --pairs 64 --samples 40 --lengths 2k,8k --json"
BENCH = "build/cpu/bench/snapmla_bench --benchmark_filter=decode_tokens --benchmark_repetitions=5 --benchmark_format=json"
LOAD = "bench/load_time.py --runs 15"
FILES = {"eval-tiny-mla-cpu.json": EVAL, "pairs-tiny-mla-cpu.json": PAIRS, "engine-tiny-mla-cpu.json": BENCH, "load-cpu.json": LOAD}


def machine() -> str:
    """The processor's name and the number of hardware threads."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", text)
    return f"{model.group(1).strip() if model else platform.machine()}, {os.cpu_count()} threads"


def git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def measure(names: list[str]) -> None:
    """Runs the commands of the named result files (all by default) and writes what they print."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, command in FILES.items():
        if names and name not in names:
            continue
        print(f"{name}: {command}", file=sys.stderr)
        run = subprocess.run(shlex.split(command), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(run.stdout)
        result.get("context", {}).pop("host_name", None)  # the record names the machine itself
        record = {
            "command": command,
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "commit": git("rev-parse", "--short", "HEAD"),
            "result": result,
        }
        (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")


def mean(figure: dict, digits: int, unit: float = 1) -> str:
    """A value with its standard error."""
    text = f"{figure['value'] * unit:.{digits}f}"
    if figure["standard_error"] is not None:
        text += f" ± {figure['standard_error'] * unit:.{digits}f}"
    return text


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def render_eval(record: dict) -> list[str]:
    """Perplexities and retrieval, whichever the result has, and where they come from."""
    result, lines = record["result"], []
    if "text" in result:
        lines += [*text_table(result["text"]), ""]
    for task in result.get("retrieval", []):
        rows = [
            [f"{r['length']:,}", str(r["prompts"]), str(r["bf16"]), str(r["fp8"]), str(r["only_bf16"]), str(r["only_fp8"])]
            for r in task["lengths"]
        ]
        header = [f"{task['task']}, prompt tokens", "prompts", "BF16 right", "FP8 right", "only BF16", "only FP8"]
        lines += [*table(header, rows), ""]
    return [*lines, source(record)]


def text_table(text: dict) -> list[str]:
    rows = []
    for bucket in [*text["by_context"], text]:
        name = f"{bucket['from']:,} to {bucket['to']:,}" if "from" in bucket else "all"
        rows.append([
            name,
            f"{bucket['tokens']:,}",
            mean(bucket["perplexity_bf16"], 2),
            mean(bucket["perplexity_fp8"], 2),
            mean(bucket["perplexity_ratio"], 4),
            mean(bucket["kl_bf16_fp8"], 2, 1e3),
            mean(bucket["top1_agreement"], 1, 100),
        ])
    header = ["tokens before", "scored", "perplexity BF16", "perplexity FP8", "ratio", "KL, 1e-3 nats", "same top-1, %"]
    return table(header, rows)


def render_bench(record: dict) -> list[str]:
    rows = []
    for entry in record["result"]["benchmarks"]:
        if entry.get("aggregate_name") == "median":
            name = re.sub(r"_median$|/real_time", "", entry["name"])
            rows.append([name, f"{entry['tokens/s']:.0f}"])
    return [*table(["decode (median of 5)", "tokens/s"], rows), "", source(record)]


def render_load(record: dict) -> list[str]:
    rows = []
    for checkpoint in record["result"]["checkpoints"]:
        read, load = checkpoint["read_seconds"]["min"], checkpoint["load_seconds"]["min"]
        rows.append([checkpoint["checkpoint"].upper(), f"{checkpoint['bytes'] / 1e9:.2f}", f"{read:.2f}", f"{load:.2f}",
                     f"{load / read:.2f}"])
    header = [f"loading, nothing in the page cache (fastest of {record['result']['runs']})", "GB", "plain read, s", "load, s",
              "load / read"]
    return [*table(header, rows), "", source(record)]


def source(record: dict) -> str:
    return f"<sub>`{record['command']}` on {record['machine']}, {record['date']}, at {record['commit']}.</sub>"


# batch, tokens, heads, query tokens: what README.md shows of the grid
SHAPES = [(128, 16384, 128, 1), (128, 16384, 128, 2), (128, 16384, 64, 1), (128, 16384, 16, 1), (128, 1024, 128, 1),
          (16, 4096, 128, 1), (1, 131072, 128, 1), (1, 32768, 128, 1), (1, 32768, 16, 1), (1, 4096, 128, 1), (1, 512, 8, 1)]


def render_grid(record: dict) -> list[str]:
    """Lines of bench/grid.py's table, ours beside the peers, and what the whole of it says."""
    by_shape = {tuple(int(row[key]) for key in ("batch", "seq_len", "heads", "seq_q")): row for row in record["rows"]}
    lines = []
    for shape in SHAPES:
        row = {key: float(value) for key, value in by_shape[shape].items()}
        batch, seq_len, heads, seq_q = shape
        lines.append([
            f"{batch} × {seq_len:,}", str(heads), str(seq_q), f"{row['us']:.1f}", f"{row['us_with_quant']:.1f}",
            f"{row['us_flashmla_bf16']:.1f}", f"{row['us_vllm_fp8']:.1f}", f"{row['us_flashmla_bf16'] / row['us']:.2f}",
            f"{row['speedup_vs_bf16']:.2f}", f"{row['gbps']:,.0f}", f"{row['tflops']:.0f}", f"{100 * row['rel_err']:.2f} %",
        ])
    header = ["requests × tokens", "heads", "query tokens", "FP8, µs", "with quantize_q, µs", "FlashMLA BF16, µs",
              "vLLM's FP8, µs", "FlashMLA / FP8", "with quantize_q", "GB/s", "TFLOPS", "error"]
    alone = [float(row["us_flashmla_bf16"]) / float(row["us"]) for row in record["rows"]]
    behind = [float(row["speedup_vs_bf16"]) for row in record["rows"]]
    return [
        *table(header, lines), "",
        f"Over all {len(alone)} shapes FlashMLA's time is {min(alone):.2f} to {max(alone):.2f} times ours, "
        f"{statistics.median(alone):.2f} in the middle; with `quantize_q` {min(behind):.2f} to {max(behind):.2f}, "
        f"{statistics.median(behind):.2f} in the middle, and below 1 at {sum(x < 1 for x in behind)}.", "",
        f"<sub>`{record['comments'][2]}` on {record['comments'][0]}; {record['comments'][1]}. "
        f"Peers: {record['comments'][3]}.</sub>",
    ]


def render_errors(record: dict) -> list[str]:
    """Error and gain of each kernel by length, for the batch and the cases that tell most."""
    by_case: dict[tuple, dict[int, dict]] = {}
    for row in record["rows"]:
        if row["batch"] == "132" and row["case"] in ("uniform mean", "flat mean", "peaked mean", "sink mean"):
            by_case.setdefault((row["case"], row["kernel"]), {})[int(row["seq_len"])] = row
    lengths = sorted({length for rows in by_case.values() for length in rows})
    names = {"snapmla": "snapmla, FP8", "flash_mla": "FlashMLA, BF16", "vllm_dense_fp8": "vLLM's FP8"}
    lines = [
        [case.removesuffix(" mean"), names[kernel], *(f"{100 * float(rows[n]['rel_err']):.2f} %" for n in lengths),
         f"{float(rows[lengths[-1]]['gain']):.3f}"]
        for (case, kernel), rows in by_case.items()
    ]
    header = ["attention", "kernel", *(f"{n // 1024}K" for n in lengths), f"gain at {lengths[-1] // 1024}K"]
    device, _, command = record["comments"][0].partition(": ")
    return [*table(header, lines), "", f"<sub>`{command}` on {device}; batch 132.</sub>"]


MODELS = {"deepseek-v2-lite": "DeepSeek-V2-Lite", "deepseek-v3": "DeepSeek-V3", "kimi-k2": "Kimi K2"}


def render_throughput(record: dict) -> list[str]:
    """Decode steps of whole models, both caches at the largest batch, from the table of `snapmla bench throughput`."""
    by_point: dict[tuple, dict[str, dict]] = {}
    for row in record["rows"]:
        if row["batch_asked"] == "max":
            key = (row["model"], row["layers"], row["expert_slice"], int(row["context"]))
            by_point.setdefault(key, {})[row["kv_dtype"]] = row
    lines = []
    order = list(MODELS)
    points = sorted(by_point.items(), key=lambda item: (order.index(item[0][0]), int(item[0][1]), item[0][3]))
    for (model, layers, part, context), rows in points:
        fp8, bf16 = rows["fp8"], rows["bf16"]
        share = 100 * float(fp8["floor_ms"]) / float(fp8["step_ms"])
        lines.append([
            MODELS[model] + ("" if part == "0/1" else f", {layers} layers, a rank of {part.split('/')[1]}"), f"{context // 1024}K",
            bf16["batch"], fp8["batch"], f"{float(bf16['tokens_per_s']):,.0f}", f"{float(fp8['tokens_per_s']):,.0f}",
            f"{float(fp8['ratio_vs_bf16']):.2f}", f"{float(fp8['step_ms']):.1f}", f"{share:.0f} %",
        ])
    header = ["model", "context", "requests, BF16", "requests, FP8", "tokens/s, BF16", "tokens/s, FP8", "FP8 / BF16", "step, ms",
              "of its floor"]
    heads = [json.loads(line) for line in record["comments"]]
    return [*table(header, lines), "",
            f"<sub>`snapmla bench throughput` with `--prefill synthetic --max-num-seqs max`, the commands at the head of "
            f"`bench/results/throughput-h100.csv`, on {heads[0]['machine']}, CUDA {heads[0]['cuda']}, {heads[0]['date']}, at "
            f"{heads[0]['commit']}.</sub>"]


BLOCKS = {  # between <!-- NAME:begin --> and <!-- NAME:end --> in README.md
    "results": (
        (render_eval, "eval-tiny-mla-cpu.json"),
        (render_eval, "pairs-tiny-mla-cpu.json"),
        (render_bench, "engine-tiny-mla-cpu.json"),
        (render_load, "load-cpu.json"),
    ),
    "quality": (
        (render_eval, "eval-perplexity-h100.json"),
        (render_eval, "eval-passkey-h100.json"),
        (render_eval, "eval-pairs-h100.json"),
    ),
    "kernels": ((render_grid, "decode-h100.csv"),),
    "throughput": ((render_throughput, "throughput-h100.csv"),),
    "errors": ((render_errors, "error-vs-length-peers-h100.csv"),),
}


def load(name: str) -> dict:
    """A result file: JSON as it is; a table as its comments (lines of #) and its rows."""
    text = (RESULTS / name).read_text()
    if name.endswith(".json"):
        return json.loads(text)
    lines = text.splitlines()
    return {"comments": [line[2:] for line in lines if line.startswith("#")],
            "rows": list(csv.DictReader(line for line in lines if not line.startswith("#")))}


def rendered() -> tuple[str, str]:
    """README.md as it is, and as the result files say it should be."""
    readme = wanted = (ROOT / "README.md").read_text()
    for name, parts in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        blocks = ["\n".join(draw(load(file))) for draw, file in parts]
        head, rest = wanted.split(begin)
        _, tail = rest.split(end)
        wanted = head + begin + "\n" + "\n\n".join(blocks) + "\n" + end + tail
    return readme, wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "render", "check"])
    parser.add_argument("files", nargs="*", help="measure: only these result files")
    args = parser.parse_args()
    if args.action == "measure":
        measure(args.files)
        return
    current, wanted = rendered()
    if args.action == "render":
        (ROOT / "README.md").write_text(wanted)
    elif current != wanted:
        sys.exit("README.md differs from bench/results: run scripts/results.py render")


if __name__ == "__main__":
    main()
