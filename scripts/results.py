#!/usr/bin/env python3
"""Measures the bundled model and keeps README.md's figures in step with the result files.

    scripts/results.py measure     # runs eval and the engine benchmark, writes bench/results/*.json (about 20 minutes)
    scripts/results.py render      # redraws the blocks between the marks in README.md from those files
    scripts/results.py check       # fails if README.md is not what render would write

Every result file names its command, machine, date and commit; those measured on a GPU are made by hand, from the JSON
of the command they name. Standard library only.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
EVAL = "build/cpu/apps/snapmla eval models/tiny-mla --passkey --samples 20 --lengths 512,1k,2k,4k --json"
PAIRS = "build/cpu/apps/snapmla eval models/tiny-mla --tokens 0 --pairs 64 --samples 40 --lengths 2k,8k --json"
BENCH = "build/cpu/bench/snapmla_bench --benchmark_filter=decode_tokens --benchmark_repetitions=5 --benchmark_format=json"
FILES = {"eval-tiny-mla-cpu.json": EVAL, "pairs-tiny-mla-cpu.json": PAIRS, "engine-tiny-mla-cpu.json": BENCH}


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


def source(record: dict) -> str:
    return f"<sub>`{record['command']}` on {record['machine']}, {record['date']}, at {record['commit']}.</sub>"


def render_kernels(record: dict) -> list[str]:
    """A line a shape: the decode kernel on FP8 pages beside ours on BF16 pages, measured in one run."""
    by_shape: dict[tuple, dict[str, dict]] = {}
    for point in record["result"]["results"]:
        shape = (point["batch"], point["seq_len"], point["heads"], point["seq_q"])
        by_shape.setdefault(shape, {})[point["dtype"]] = point
    rows = []
    for (batch, seq_len, heads, seq_q), points in by_shape.items():
        fp8, bf16 = points["fp8"], points["bf16"]
        groups = [f"{batch}x{seq_len}"] if isinstance(seq_len, int) else seq_len.split("+")
        requests = " + ".join("{} × {:,}".format(*map(int, group.split("x"))) for group in groups)
        rows.append([
            requests, str(heads), str(seq_q), f"{fp8['us']:.1f}", f"{fp8['us_with_quant']:.1f}",
            f"{bf16['us']:.1f}", f"{bf16['us'] / fp8['us_with_quant']:.2f}", f"{fp8['gbps']:,.0f}",
            f"{fp8['tflops']:.0f}", f"{100 * fp8['rel_err']:.2f} %",
        ])
    header = ["requests × tokens", "heads", "query tokens", "FP8, µs", "with quantize_q, µs", "BF16, µs", "BF16 / FP8",
              "GB/s", "TFLOPS", "error"]
    return [*table(header, rows), "", source(record)]


BLOCKS = {  # between <!-- NAME:begin --> and <!-- NAME:end --> in README.md
    "results": (
        (render_eval, "eval-tiny-mla-cpu.json"),
        (render_eval, "pairs-tiny-mla-cpu.json"),
        (render_bench, "engine-tiny-mla-cpu.json"),
    ),
    "kernels": ((render_kernels, "decode-h200.json"),),
}


def rendered() -> tuple[str, str]:
    """README.md as it is, and as the result files say it should be."""
    readme = wanted = (ROOT / "README.md").read_text()
    for name, parts in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        blocks = ["\n".join(draw(json.loads((RESULTS / file).read_text()))) for draw, file in parts]
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
