"""The plots of docs/numerics.md as SVG, from the result files (scripts/study.py). They follow the reader's light or dark scheme."""

import json
import math
from html import escape

from results import RESULTS
from study_text import LATENT_FORMATS, ROPE_FORMATS, Results, longest, tokens_text

COLORS = ["#3987c9", "#d98226", "#2f9e6e", "#c8524f", "#8f6fc4", "#7d8896"]
STYLE = """<style>
.paper{fill:#ffffff}.ink{fill:#24292f}.soft{fill:#57606a}.axis{stroke:#8c959f;fill:none}.grid{stroke:#d8dee4}
text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}.title{font-size:14px;font-weight:600}
@media (prefers-color-scheme:dark){.paper{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.axis{stroke:#6e7681}.grid{stroke:#30363d}}
</style>"""


class Drawing:
    def __init__(self, width: int, height: int, title: str):
        self.width, self.height = width, height
        self.parts = [f'<rect class="paper" width="{width}" height="{height}" rx="6"/>']
        self.title = title
        self.text(16, 24, title, "title ink")

    def text(self, x: float, y: float, text: str, kind: str = "ink", anchor: str = "start") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: list[tuple[float, float]], color: str, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')

    def dot(self, x: float, y: float, color: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{color}" stroke-width="2"/>')

    def box(self, x: float, y: float, width: float, height: float, color: str, opacity: float = 1) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}" fill-opacity="{opacity:.3f}"/>')

    def rule(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def legend(self, x: float, y: float, entries: list[tuple[str, str, str]]) -> None:
        """(label, color, "line", "dashed", "dot" or "box") one below the other."""
        for i, (label, color, kind) in enumerate(entries):
            at = y + 18 * i
            if kind == "dot":
                self.dot(x + 10, at - 4, color)
            elif kind == "box":
                self.box(x, at - 10, 20, 11, color)
            else:
                self.line([(x, at - 4), (x + 20, at - 4)], color, kind == "dashed")
            self.text(x + 28, at, label)

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" role="img">'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", STYLE, *self.parts, "</svg>", ""])


class LogPanel:
    """Axes over powers of two (x) and of ten (y)."""

    def __init__(self, drawing: Drawing, place: tuple[float, float, float, float], x_range: tuple[float, float], y_range: tuple[float, float]):
        self.drawing, self.place, self.x_range, self.y_range = drawing, place, x_range, y_range

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.place
        x_part = math.log(x / self.x_range[0]) / math.log(self.x_range[1] / self.x_range[0])
        y_part = math.log(max(y, self.y_range[0]) / self.y_range[0]) / math.log(self.y_range[1] / self.y_range[0])
        return left + width * x_part, top + height * (1 - y_part)

    def axes(self, title: str, x_ticks: list[int]) -> None:
        left, top, width, height = self.place
        self.drawing.text(left, top - 8, title, "soft")
        for power in range(round(math.log10(self.y_range[0])), round(math.log10(self.y_range[1])) + 1):
            y = self.at(self.x_range[0], 10.0**power)[1]
            self.drawing.rule(left, y, left + width, y)
            label = f"{100 * 10.0**power:g} %"
            self.drawing.text(left - 6, y + 4, label, "soft", "end")
        for tick in x_ticks:
            x = self.at(tick, self.y_range[0])[0]
            self.drawing.rule(x, top + height, x, top + height + 4, "axis")
            self.drawing.text(x, top + height + 18, tokens_text(tick), "soft", "middle")
        self.drawing.rule(left, top + height, left + width, top + height, "axis")
        self.drawing.rule(left, top, left, top + height, "axis")


def draw_length(results: Results) -> str:
    """Error of the attention output over the context, modelled sums as lines and measured kernels as circles."""
    drawing = Drawing(900, 420, "Error of the attention output over the context")
    rules = ["every-64", "every-128", "every-256", "every-512", "never"]
    kernels = {"flash_mla": ("FlashMLA, BF16, measured", COLORS[5]), "vllm_dense_fp8": ("vLLM's dense FP8, measured", COLORS[3]),
               "snapmla": ("snapmla, FP8, measured", COLORS[0])}
    colors = dict(zip(rules, ["#9cc4e8", COLORS[0], COLORS[2], COLORS[1], COLORS[3]]))
    for i, kind in enumerate(("uniform", "flat")):
        panel = LogPanel(drawing, (64 + 330 * i, 70, 270, 290), (1024, 1 << 20), (1e-5, 1))
        panel.axes(f"{kind} attention, latents with a mean", [1024, 8192, 65536, 1 << 20])
        for rule in rules:
            where = {"part": "accumulation", "source": kind, "variant": rule}
            lengths = [int(n) for n in results.sums.values("tokens", **where)]
            drawing.line([panel.at(n, results.sums.value("relative_l2", tokens=n, **where)) for n in lengths], colors[rule])
        for kernel, (_, color) in kernels.items():
            where = {"kernel": kernel, "case": f"{kind} mean", "batch": 132}
            for n in results.measured.values("seq_len", **where):
                drawing.dot(*panel.at(int(n), results.measured.value("rel_err", seq_len=n, **where)), color)
    drawing.text(64, 404, "tokens in the cache; measured outputs carry the 0.17 % of their rounding to BF16, modelled ones do not", "soft")
    entries = [(rule.replace("every-", "promoted every ").replace("never", "never promoted"), colors[rule], "line") for rule in reversed(rules)]
    drawing.legend(690, 90, entries + [(label, color, "dot") for label, color in kernels.values()])
    return drawing.svg()


def draw_formats(results: Results) -> str:
    """Bars: the error of each cache format, on the model and on the two synthetic sources with RoPE tails."""
    study = results.attention
    far = longest(study, "formats")
    sources = [study.model(), "tails", "sink"]
    variants = [*LATENT_FORMATS, *ROPE_FORMATS]
    drawing = Drawing(900, 70 + 52 * len(variants), f"Error of the attention output by cache format, {tokens_text(far)} tokens")
    most = 0.18
    left, width = 170, 560
    for i, variant in enumerate(variants):
        y = 52 + 52 * i
        drawing.text(left - 10, y + 24, variant, "ink", "end")
        for j, source in enumerate(sources):
            error = study.value("relative_l2", part="formats", variant=variant, source=source, tokens=far)
            drawing.box(left, y + 14 * j, width * min(1, error / most), 12, COLORS[(0, 1, 3)[j]])
            drawing.text(left + width * min(1, error / most) + 5, y + 10 + 14 * j, f"{100 * error:.2f} %", "soft")
    drawing.legend(800, 60, [(source, COLORS[(0, 1, 3)[j]], "box") for j, source in enumerate(sources)])
    return drawing.svg()


def draw_layers(results: Results) -> str:
    """Error by layer of the model, RoPE in BF16 and not."""
    study = results.attention
    model, far = study.model(), longest(study, "formats")
    layers = study.values("layer", part="formats", source=model)
    drawing = Drawing(900, 380, f"Error of the attention output by layer of {model}, {tokens_text(far)} tokens")
    left, top, width, height, most = 64, 56, 560, 270, 0.08
    for percent in range(0, 9, 2):
        y = top + height * (1 - percent / 100 / most)
        drawing.rule(left, y, left + width, y)
        drawing.text(left - 6, y + 4, f"{percent} %", "soft", "end")
    shown = [("token", "line"), ("tensor-static", "line"), ("block", "line"), ("token-rope", "dashed"), ("tensor-static-rope", "dashed"),
             ("tensor-dynamic-rope", "dashed")]
    for i, (variant, kind) in enumerate(shown):
        points = []
        for j, layer in enumerate(layers):
            error = study.value("relative_l2", part="formats", variant=variant, source=model, tokens=far, layer=layer)
            points.append((left + 40 + (width - 80) * j / (len(layers) - 1), top + height * (1 - error / most)))
        drawing.line(points, COLORS[i], kind == "dashed")
    for j, layer in enumerate(layers):
        drawing.text(left + 40 + (width - 80) * j / (len(layers) - 1), top + height + 20, f"layer {layer}", "soft", "middle")
    drawing.rule(left, top + height, left + width, top + height, "axis")
    drawing.legend(660, 80, [(variant, COLORS[i], kind) for i, (variant, kind) in enumerate(shown)])
    return drawing.svg()


def heat_panels(results: Results) -> list[tuple[str, list]]:
    """(title, prompts as (length, depth, right)) a panel: BF16 and ours, then the formats that the grid has."""
    panels = []
    for name in ("eval-passkey-h100.json", "eval-pairs-h100.json"):
        task = json.loads((RESULTS / name).read_text())["result"]["retrieval"][0]
        for cache, label in (("bf16", "BF16"), ("fp8", "ours")):
            panels.append((f"{task['task']}, {label}", [(p["length"], p["depth"], p[cache]) for p in task["prompts"]]))
    for name, run in (results.model_gpu or {"runs": {}})["runs"].items():
        cache, task = name.rsplit(" ", 1)
        if task == "pairs" and cache in ("token-rope", "tensor-static-rope", "tensor-1-rope"):
            prompts = run["result"]["retrieval"][0]["prompts"]
            panels.append((f"64 pairs, {cache}", [(p[0], p[1], p[-1]) for p in prompts]))
    return panels


def draw_retrieval(results: Results) -> str:
    """Heat maps over length and depth of the fact that is asked for."""
    depths = 5
    panels = heat_panels(results)
    rows = -(-len(panels) // 2)
    drawing = Drawing(900, 40 + 275 * rows, "Retrieval by prompt length and depth of the fact, percent right")
    for index, (title, prompts) in enumerate(panels):
        left, top = 80 + 430 * (index % 2), 76 + 275 * (index // 2)
        lengths = sorted({length for length, _, _ in prompts})
        drawing.text(left, top - 12, title)
        cell_width, cell_height = 62, min(46, 210 / len(lengths))
        for i, length in enumerate(lengths):
            y = top + cell_height * i
            drawing.text(left - 6, y + cell_height / 2 + 4, tokens_text(length), "soft", "end")
            for j in range(depths):
                cell = [right for n, depth, right in prompts if n == length and min(int(depth * depths), depths - 1) == j]
                share = sum(cell) / len(cell)
                drawing.box(left + cell_width * j, y, cell_width - 2, cell_height - 2, COLORS[3] if share < 0.5 else COLORS[2], 0.15 + 0.6 * abs(2 * share - 1))
                drawing.text(left + cell_width * (j + 0.5), y + cell_height / 2 + 4, f"{100 * share:.0f}", "ink", "middle")
        for j in range(depths):
            label = f"{100 * j // depths}-{100 * (j + 1) // depths} %"
            drawing.text(left + cell_width * (j + 0.5), top + cell_height * len(lengths) + 14, label, "soft", "middle")
    return drawing.svg()


def draw_all(results: Results) -> dict[str, str]:
    """File name -> SVG."""
    return {"error-over-length.svg": draw_length(results), "error-by-format.svg": draw_formats(results),
            "error-by-layer.svg": draw_layers(results), "retrieval.svg": draw_retrieval(results)}
