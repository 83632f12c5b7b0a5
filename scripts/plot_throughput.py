#!/usr/bin/env python3
"""Draws tokens/s over context length for both caches from the CSV of `snapmla bench throughput`, as an SVG.

    scripts/plot_throughput.py bench/results/throughput-h100.csv --model deepseek-v2-lite -o docs/throughput.svg
    scripts/plot_throughput.py FILE --batch 64        # the rows of --max-num-seqs 64; by default those of "max"

A chart a model (and part of it), side by side; both axes logarithmic, so that equal gains are equal distances. Each FP8
point carries its gain over BF16; dashed lines are what the chip's own limits allow. Colours follow the reader's light or
dark mode. Standard library only.
"""

import argparse
import csv
import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

PANEL_WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, BOTTOM, FOOT = 420, 300, 64, 28, 52, 44, 34
CACHES = {"fp8": "FP8 cache", "bf16": "BF16 cache"}
STYLE = """
  .text { fill: #1f2328; } .dim { fill: #59636e; } .grid { stroke: #d1d9e0; } .axis { stroke: #59636e; }
  .fp8 { stroke: #0969da; } .fp8f { fill: #0969da; } .bf16 { stroke: #bc4c00; } .bf16f { fill: #bc4c00; }
  .line { fill: none; stroke-width: 2; } .floor { fill: none; stroke-width: 1; stroke-dasharray: 4 4; }
  @media (prefers-color-scheme: dark) {
    .text { fill: #e6edf3; } .dim { fill: #9198a1; } .grid { stroke: #3d444d; } .axis { stroke: #9198a1; }
    .fp8 { stroke: #58a6ff; } .fp8f { fill: #58a6ff; } .bf16 { stroke: #f0883e; } .bf16f { fill: #f0883e; }
  }
"""


def load(path: Path) -> tuple[dict, list[dict]]:
    """The record in the file's first comment, and its rows."""
    lines = path.read_text().splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    record = json.loads(comments[0]) if comments else {}
    return record, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def group(rows: list[dict], batch: str) -> dict[str, dict[str, list[dict]]]:
    """Rows of the asked batch by chart and cache, by rising context."""
    charts: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        if row["batch_asked"] != batch:
            continue
        title = row["model"]
        if not row["expert_slice"].endswith("/1"):
            title += f", {row['layers']} layers, rank {row['expert_slice']}"
        charts.setdefault(title, {}).setdefault(row["kv_dtype"], []).append(row)
    for caches in charts.values():
        for points in caches.values():
            points.sort(key=lambda row: int(row["context"]))
    return charts


def short(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from the last one not above `low` to the first not below `high`."""
    steps = [m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2) for m in (1, 2, 5)]
    first = max(step for step in steps if step <= low)
    last = min(step for step in steps if step >= high)
    return [step for step in steps if first <= step <= last]


def floor_rate(row: dict) -> float | None:
    return 1000 * int(row["batch"]) / float(row["floor_ms"]) if row["floor_ms"] else None


def draw_panel(title: str, caches: dict[str, list[dict]], left: float) -> list[str]:
    rows = [row for points in caches.values() for row in points]
    rates = [float(row["tokens_per_s"]) for row in rows] + [rate for row in rows if (rate := floor_rate(row))]
    contexts = sorted({int(row["context"]) for row in rows})
    marks = ticks(min(rates), max(rates))
    x0, x1, y0, y1 = left + LEFT, left + PANEL_WIDTH - RIGHT, TOP + PANEL_HEIGHT - BOTTOM - TOP, TOP

    def place(value: float, low: float, high: float, start: float, end: float) -> float:
        share = 0.5 if low == high else (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return start + share * (end - start)

    def at(context: float, rate: float) -> tuple[float, float]:
        return place(context, contexts[0], contexts[-1], x0 + 12, x1 - 12), place(rate, marks[0], marks[-1], y0, y1)

    out = [f'<text class="text" x="{left + LEFT}" y="{TOP - 30}" font-weight="600">{escape(title)}</text>']
    for mark in marks:
        y = at(contexts[0], mark)[1]
        out.append(f'<line class="grid" x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="dim" x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{mark:,.10g}</text>')
    out.append(f'<line class="axis" x1="{x0}" x2="{x1}" y1="{y0}" y2="{y0}"/>')
    for context in contexts:
        x = at(context, marks[0])[0]
        out.append(f'<text class="dim" x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">{short(context)}</text>')
    out.append(f'<text class="dim" x="{(x0 + x1) / 2:.1f}" y="{y0 + 36}" text-anchor="middle">tokens of context</text>')
    out.append(f'<text class="dim" x="{x0 - 8}" y="{TOP - 12}" text-anchor="end">tokens/s</text>')
    for index, cache in enumerate(cache for cache in CACHES if cache in caches):
        points = caches[cache]
        limits = [(int(row["context"]), rate) for row in points if (rate := floor_rate(row))]
        for kind, line in (("floor", limits), ("line", [(int(r["context"]), float(r["tokens_per_s"])) for r in points])):
            if line:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
                out.append(f'<polyline class="{cache} {kind}" points="{path}"/>')
        for row in points:
            x, y = at(int(row["context"]), float(row["tokens_per_s"]))
            out.append(f'<circle class="{cache}f" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
            if cache == "fp8" and row["ratio_vs_bf16"]:
                gain = f"{float(row['ratio_vs_bf16']):.2f}×"
                out.append(f'<text class="fp8f" x="{x - 4:.1f}" y="{y + 18:.1f}" text-anchor="middle">{gain}</text>')
        out.append(f'<text class="{cache}f" x="{x1}" y="{TOP - 12 + 16 * index}" text-anchor="end">{CACHES[cache]}</text>')
    return out


def draw(record: dict, charts: dict[str, dict[str, list[dict]]]) -> str:
    width, height = PANEL_WIDTH * len(charts), PANEL_HEIGHT + FOOT
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           f'font-family="system-ui, sans-serif" font-size="12">', "<title>Tokens a second over context length</title>",
           f"<style>{STYLE}</style>"]
    for index, (title, caches) in enumerate(charts.items()):
        out += draw_panel(title, caches, index * PANEL_WIDTH)
    source = ", ".join(str(record[key]) for key in ("machine", "date") if record.get(key))
    if record.get("commit"):
        source += f", at {record['commit']}"
    for line, text in enumerate((source, "dashed: the limit of the chip")):
        y = height - 10 - 14 * (1 - line)
        out.append(f'<text class="dim" x="{LEFT}" y="{y}" font-size="11">{escape(text)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="default: standard output")
    parser.add_argument("--model", help="draw this model's rows alone")
    parser.add_argument("--batch", default="max", help="draw the rows of this --max-num-seqs")
    args = parser.parse_args()
    record, rows = load(args.csv)
    rows = [row for row in rows if args.model in (None, row["model"])]
    charts = group(rows, args.batch)
    if not charts:
        asked = ", ".join(sorted({row["batch_asked"] for row in rows})) or "none"
        sys.exit(f"{args.csv}: no rows of --max-num-seqs {args.batch}; there are {asked}")
    picture = draw(record, charts)
    if args.output:
        args.output.write_text(picture)
    else:
        sys.stdout.write(picture)


if __name__ == "__main__":
    main()
