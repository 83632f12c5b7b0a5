#!/usr/bin/env python3
"""Everything behind "The evidence" in docs/numerics.md: measures it, draws it, and writes the numbers into the text.

    scripts/study.py measure cpu     # bench/results/study-*-cpu.*: about 10 minutes on 2 quiet cores
    scripts/study.py measure gpu     # bench/results/study-*-h100.*: build/cuda, 14 minutes on one H100
    scripts/study.py render          # docs/plots/*.svg and the blocks between marks in docs/numerics.md
    scripts/study.py check           # fails if these are not what render would write

Every result file names its command, machine, date and commit. `measure` goes on where it was stopped: a run of the model grid that is
in its file, by the same command at the same commit, is not made again. Standard library only.
"""

import argparse
import csv
import datetime
import json
import os
import shlex
import subprocess
import sys

import study_plots
import study_text
from results import ROOT, machine

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "numerics.md"
PLOTS = ROOT / "docs" / "plots"

TABLES = {
    "cpu": {
        "study-attention-cpu.csv": "study --parts formats,scale-rule,splits --lengths 1k,8k,32k",
        "study-sums-cpu.csv": "study --parts weights,accumulation --longest-sum 1M",
    },
    "gpu": {"study-attention-h100.csv": "study --backend cuda --parts formats,splits --lengths 1k,8k,32k"},
}
GRIDS = {"cpu": "study-model-cpu.json", "gpu": "study-model-h100.json"}
FORMATS = ["token", "token-amax", "token-rope", "token-rope-shared", "tensor-static", "tensor-dynamic", "block",
           "tensor-static-rope", "tensor-dynamic-rope", "tensor-1-rope"]
ON_CPU = ["token-rope", "tensor-static", "tensor-dynamic", "block", "tensor-static-rope"]


def grid(where: str) -> dict[str, str]:
    """The runs of the model grid: name -> arguments. "fp8" is our cache; the formats stand in its place."""
    model = "eval models/tiny-mla --json"
    sizes = {
        "text": "--tokens 1536 --max-context 2k",
        "passkey": "--tokens 0 --passkey --lengths 512,2k --samples 10",
        "pairs": "--tokens 0 --pairs 64 --lengths 2k --samples 10",
        "greedy": "--tokens 0 --greedy 8 --greedy-tokens 256",
    }
    if where == "gpu":
        model += " --backend cuda --max-num-seqs 64 --max-num-batched-tokens 4096"
        sizes = {
            "text": "--tokens 20000 --max-context 32k",
            "passkey": "--tokens 0 --passkey --lengths 512,1k,2k,4k,8k,16k,32k --samples 300",
            "pairs": "--tokens 0 --pairs 64 --lengths 2k,8k,32k --samples 300",
            "greedy": "--tokens 0 --greedy 64 --greedy-tokens 2k",
        }
    runs = {f"fp8 {task}": f"{model} {size}" for task, size in sizes.items()}
    if where == "gpu":
        # Fake quantization is the processor's work, and takes ten times as long as a cache's own.
        sizes["passkey"] = sizes["passkey"].replace("--samples 300", "--samples 30")
        sizes["pairs"] = sizes["pairs"].replace("--samples 300", "--samples 75")
    for name in ON_CPU if where == "cpu" else FORMATS:
        for task in ("text", "passkey", "pairs"):
            # Prompts follow from the seed, so BF16 need not answer them again.
            alone = "" if task == "text" else " --kv-cache-dtype fp8"
            runs[f"{name} {task}"] = f"{model} {sizes[task]} --fake-format {name}{alone}"
    return runs


def device(where: str) -> str:
    if where == "cpu":
        return machine()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    return f"{name}, driver {driver}"


def commit() -> str:
    """Of this checkout; a copy without its history is told by SNAPMLA_COMMIT."""
    if "SNAPMLA_COMMIT" in os.environ:
        return os.environ["SNAPMLA_COMMIT"]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    return git.stdout.strip()


def run(where: str, arguments: str) -> tuple[str, str]:
    """(command, what it prints)"""
    command = f"build/{'cpu' if where == 'cpu' else 'cuda'}/apps/snapmla {arguments}"
    print(command, file=sys.stderr, flush=True)
    done = subprocess.run(shlex.split(command), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return command, done.stdout


def measure_table(where: str, name: str, arguments: str) -> None:
    command, text = run(where, arguments)
    head = f"# {device(where)}, {datetime.date.today()}, at {commit()}: {command}\n"
    (RESULTS / name).write_text(head + text)


def compact(result: dict) -> dict:
    """A result without what nothing is drawn from; of a retrieval prompt its length, depth and verdicts."""
    for task in result.get("retrieval", []):
        task["prompts"] = [[p["length"], round(p["depth"], 3), *(int(p[c]) for c in ("bf16", "fp8") if c in p)]
                           for p in task["prompts"]]
    return result


def measure_grid(where: str) -> None:
    file = RESULTS / GRIDS[where]
    head = {"machine": device(where), "date": str(datetime.date.today()), "commit": commit()}
    record = json.loads(file.read_text()) if file.exists() else {}
    if any(record.get(key) != head[key] for key in ("machine", "commit")):
        record = {**head, "runs": {}}
    for name, arguments in grid(where).items():
        if record["runs"].get(name, {}).get("command", "").endswith(arguments):
            continue
        command, text = run(where, arguments)
        record["runs"][name] = {"command": command, "result": compact(json.loads(text))}
        file.write_text(json.dumps(record, separators=(",", ":")).replace('},"', '},\n"') + "\n")


def load_table(name: str) -> study_text.StudyTable:
    lines = (RESULTS / name).read_text().splitlines()
    comments = [line[2:] for line in lines if line.startswith("#")]
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return study_text.StudyTable(comments[0], rows)


def load_results() -> study_text.Results:
    def grid_of(where: str) -> dict | None:
        file = RESULTS / GRIDS[where]
        return json.loads(file.read_text()) if file.exists() else None

    def optional(name: str) -> study_text.StudyTable | None:
        return load_table(name) if (RESULTS / name).exists() else None

    return study_text.Results(
        attention=load_table("study-attention-cpu.csv"),
        sums=load_table("study-sums-cpu.csv"),
        measured=load_table("error-vs-length-peers-h100.csv"),
        model_cpu=grid_of("cpu"),
        model_gpu=grid_of("gpu"),
        attention_gpu=optional("study-attention-h100.csv"),
    )


def rendered() -> dict:
    """Path -> what should stand there."""
    results = load_results()
    wanted = {PLOTS / name: text for name, text in study_plots.draw_all(results).items()}
    document = DOCUMENT.read_text()
    for name, lines in study_text.blocks(results).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, rest = document.split(begin)
        _, tail = rest.split(end)
        document = head + begin + "\n" + "\n".join(lines) + "\n" + end + tail
    wanted[DOCUMENT] = document
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "render", "check"])
    parser.add_argument("where", nargs="?", choices=["cpu", "gpu"], default="cpu", help="measure: which part")
    parser.add_argument("--only", choices=["tables", "grid"], help="measure: attention alone, or the model alone")
    options = parser.parse_args()
    if options.action == "measure":
        if options.only != "grid":
            for name, arguments in TABLES[options.where].items():
                measure_table(options.where, name, arguments)
        if options.only != "tables":
            measure_grid(options.where)
        return
    for path, text in rendered().items():
        if options.action == "render":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} differs from bench/results: run scripts/study.py render")


if __name__ == "__main__":
    main()
