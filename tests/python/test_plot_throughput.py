"""scripts/plot_throughput.py on a made-up table: what is drawn, where, and what is refused."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import plot_throughput as plot  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
RECORD = '# {"command":"snapmla bench throughput","machine":"A & B","date":"2026-01-02","commit":"abc","version":"0"}\n'
HEADER = "model,context,batch,kv_dtype,tokens_per_s,floor_ms,ratio_vs_bf16,batch_asked,layers,expert_slice\n"


def row(context, dtype, rate, ratio, model="m", asked="max", floor="5", part="0/1"):
    return f"{model},{context},100,{dtype},{rate},{floor},{ratio},{asked},8,{part}\n"


ROWS = (row(131072, "bf16", 1000, 1) + row(131072, "fp8", 1790, 1.79) + row(8192, "bf16", 8000, 1)
        + row(8192, "fp8", 12000, 1.5))


@pytest.fixture
def draw(tmp_path, monkeypatch):
    def run(rows, *args):
        table = tmp_path / "t.csv"
        table.write_text(RECORD + HEADER + rows)
        out = tmp_path / "t.svg"
        monkeypatch.setattr(sys, "argv", ["plot", str(table), "-o", str(out), *args])
        plot.main()
        return ET.fromstring(out.read_text())

    return run


def points(svg, kind):
    lines = [line for line in svg.iter(SVG + "polyline") if line.get("class") == kind]
    return [tuple(map(float, point.split(","))) for line in lines for point in line.get("points").split()]


def texts(svg):
    return ["".join(text.itertext()) for text in svg.iter(SVG + "text")]


def test_lines_run_by_context_and_higher_rates_lie_higher(draw):
    svg = draw(ROWS)
    fp8, bf16 = points(svg, "fp8 line"), points(svg, "bf16 line")
    assert len(fp8) == len(bf16) == 2
    assert fp8[0][0] == bf16[0][0] < fp8[1][0] == bf16[1][0]
    assert fp8[0][1] < bf16[0][1] < fp8[1][1] < bf16[1][1]  # y grows downwards
    # Equal ratios are equal distances: 12000 / 8000 = 1.5 against 1790 / 1000.
    assert (bf16[1][1] - fp8[1][1]) / (bf16[0][1] - fp8[0][1]) == pytest.approx(1.436, abs=0.01)
    # floor: 100 requests in 5 ms are 20,000 tokens/s everywhere
    assert {y for _, y in points(svg, "fp8 floor")} == {points(svg, "bf16 floor")[0][1]}
    assert points(svg, "fp8 floor")[0][1] < fp8[0][1]


def test_texts_say_what_it_is(draw):
    said = texts(draw(ROWS))
    for text in ("m", "8K", "128K", "1.50×", "1.79×", "FP8 cache", "BF16 cache", "tokens/s"):
        assert text in said
    assert any(text.startswith("A & B, 2026-01-02, at abc") for text in said)


def test_a_chart_for_each_model_and_part(draw):
    svg = draw(ROWS + row(8192, "fp8", 5, "", model="n", part="0/32"))
    assert {"m", "n, 8 layers, rank 0/32"} <= set(texts(svg))
    assert float(svg.get("width")) == 2 * plot.PANEL_WIDTH
    assert len(points(svg, "fp8 line")) == 3


def test_without_limits_there_are_no_dashed_lines(draw):
    assert points(draw(row(8192, "fp8", 5, "", floor="")), "fp8 floor") == []


def test_draws_the_batch_that_is_asked_for(draw):
    rows = ROWS + row(8192, "fp8", 7, "", asked="64")
    assert len(points(draw(rows, "--batch", "64"), "fp8 line")) == 1
    with pytest.raises(SystemExit, match="no rows of --max-num-seqs 3; there are 64, max"):
        draw(rows, "--batch", "3")
