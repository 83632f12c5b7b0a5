"""bench/grid.py with a program and peers that answer known times: no GPU, no kernel."""

import csv
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import grid  # noqa: E402
import peers  # noqa: E402

# Answers us = 100 * heads + s for each point, and fails for a batch of 3.
PROGRAM = """#!%s
import itertools, json, sys
args = dict(zip(sys.argv[3::2], sys.argv[4::2])) if "--shape" in sys.argv else {}
if not args:
    argv = [a for a in sys.argv[3:] if a not in ("--check", "--no-limits")]
    args = dict(zip(argv[::2], argv[1::2]))
    assert args["--kv-cache-dtype"] == "fp8" and args["--repeat"] == "7" and args["--pause-ms"] == "15"
if args.get("--batch") == "3":
    sys.exit(1)
rate = lambda x: {"burst": 2 * x, "sustained": x, "clock_mhz": 1000}
limits = {"read_gbps": rate(1000), "fp8_tflops": rate(1000), "bf16_tflops": rate(500)} if "--shape" in args else None
rows = [{"batch": 2, "seq_q": s, "heads": h, "us": 100.0 * h + s, "us_p10": 1.0, "us_p90": 2.0,
         "us_with_quant": 200.0 * h + s, "gbps": 3.0, "tflops": 4.0, "clock_mhz": 5.0, "rel_err": "nan"}
        for h, s in itertools.product(*(map(int, args.get(k, "1").split(",")) for k in ("--heads", "--s")))]
json.dump({"version": "0", "device": "stub", "limits": limits, "results": rows, "skipped": []},
          open(args["--json"], "w"))
"""


@pytest.fixture
def run_grid(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(PROGRAM % sys.executable)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    pages_made = []

    def measure_peer(peer, shape, pages, options):
        if not peer.fp8 and shape.heads == 16 and shape.s == 2:
            raise RuntimeError("no\nsuch shape")
        return {"kernel": peer.name, "batch": shape.batch, "seq_q": shape.s, "heads": shape.heads, "seq_len": 1,
                "dtype": "", "us": 300.0 * shape.heads if not peer.fp8 else 7.0}

    monkeypatch.setattr(peers, "start", lambda: 1 << 20)
    monkeypatch.setattr(peers, "find_peers", lambda _: [SimpleNamespace(name="slow", fp8=False),
                                                        SimpleNamespace(name="other", fp8=True)])
    monkeypatch.setattr(peers, "Pages", lambda shape, fp8, l2_bytes: pages_made.append((shape.text, fp8)) or "pages")
    monkeypatch.setattr(peers, "measure_peer", measure_peer)

    def run(*arguments):
        path = tmp_path / "table.csv"
        monkeypatch.setattr(sys, "argv", ["grid.py", "--program", str(program), "--repeat", "7", "--pause-ms", "15",
                                          "--commit", "c0ffee", "--csv", str(path), *arguments])
        status = grid.main()
        lines = path.read_text().splitlines()
        head = [line for line in lines if line.startswith("#")]
        return status, head, list(csv.DictReader(lines[len(head):])), pages_made

    return run


def test_table_has_a_line_a_point_and_says_what_measured_it(run_grid, capsys):
    status, head, rows, pages_made = run_grid("--batch", "2", "--seq-len", "1k,64", "--heads", "8,16", "--s", "1,2",
                                              "--ragged", "1x128+2x64")
    assert status == 0
    text = "\n".join(head)
    assert "stub" in text and "c0ffee" in text and "--repeat 7" in text and "read_gbps: 1000 sustained" in text
    assert "us_flashmla_bf16: slow; us_vllm_fp8: other" in text
    assert list(rows[0]) == ("batch,seq_q,heads,seq_len,us,us_p10,us_p90,us_with_quant,gbps,tflops,clock_mhz,limit_us,"
                             "pct_limit,rel_err,us_flashmla_bf16,us_vllm_fp8,speedup_vs_bf16").split(",")
    shapes = [(batch, seq_len, heads, s) for batch, seq_len in (("2", "1024"), ("2", "64"), ("3", "1x128+2x64"))
              for heads in ("8", "16") for s in ("1", "2")]
    assert [(row["batch"], row["seq_len"], row["heads"], row["seq_q"]) for row in rows] == shapes
    assert len(pages_made) == 6, "once a group and peer"

    row = rows[1]  # 2 x 1,024 x 8 x 2: 1.3 MB at 1,000 GB/s, and 32,768 pairs of 2.304 ps
    assert float(row["limit_us"]) == pytest.approx(2 * 1024 * 644e-6, rel=1e-4)
    assert float(row["pct_limit"]) == pytest.approx(100 * 2 * 1024 * 644e-6 / 802, rel=1e-4)
    assert (row["us"], row["us_with_quant"], row["rel_err"], row["us_vllm_fp8"]) == ("802.0", "1602.0", "nan", "7.0")
    assert float(row["speedup_vs_bf16"]) == pytest.approx(2400 / 1602, rel=1e-4)
    out = capsys.readouterr().out
    assert "slow 2x1024x16x2, heads 16, s 2: failed: no\n" in out
    assert [row["us_flashmla_bf16"] for row in rows[:4]] == ["2400.0", "2400.0", "4800.0", ""]
    assert rows[3]["speedup_vs_bf16"] == "" and rows[3]["us_vllm_fp8"] == "7.0"
    assert "12 points, 9 of them beside the BF16 peer" in out and "0 below 1.0" in out


def test_limit_of_many_rows_is_the_tensor_cores():
    rate = lambda x: {"sustained": x, "burst": 2 * x}
    limits = {"read_gbps": rate(1000), "fp8_tflops": rate(1000), "bf16_tflops": rate(500)}
    assert grid.limit_us(peers.Shape("1x1000x128x4"), limits) == pytest.approx(512 * 1000 * (2.048 + 0.256) * 1e-6)


def test_what_fails_or_does_not_fit_leaves_empty_cells(run_grid, capsys):
    status, _, rows, pages_made = run_grid("--batch", "3,2", "--seq-len", "64k", "--heads", "8", "--s", "1",
                                           "--max-cache-bytes", "100m")
    assert status == 1, "ours failed for a batch of 3"
    assert [row["us"] for row in rows] == ["", "801.0"]
    assert [row["us_flashmla_bf16"] for row in rows] == ["", ""], "their caches are of 216 and 144 MiB"
    assert [row["us_vllm_fp8"] for row in rows] == ["", "7.0"]
    assert pages_made == [("2x65536x8x1", True)]
    out = capsys.readouterr().out
    assert "--batch 3 --seq-len 65536: failed" in out and "beyond --max-cache-bytes" in out


def test_summary_names_the_points_that_are_slower():
    row = {"batch": 1, "seq_q": 2, "heads": 8, "seq_len": 64}
    lines = list(grid.summary([{**row, "speedup_vs_bf16": x} for x in (0.5, 2.0, 4.0)] + [row]))
    assert lines[:2] == ["4 points, 3 of them beside the BF16 peer",
                         "speedup_vs_bf16: least 0.5, median 2, 1 below 1.0"]
    assert lines[2:] == ["  batch 1, seq_len 64, heads 8, seq_q 2: 0.5"]


@pytest.mark.parametrize("fp8", [False, True])
def test_pages_of_a_ragged_batch_are_all_used_once(fp8):
    shape = peers.Shape("1x4200+2x64+1x65", 8, 1)  # 66 + 1 + 1 + 2 pages
    pages = peers.Pages(shape, fp8, 3 * shape.cache_bytes(fp8) // 4, device="cpu")
    assert pages.sets == 3 and pages.tables.shape == (3, 4, 66)
    used = torch.cat([pages.tables[:, request, :count].flatten() for request, count in enumerate((66, 1, 1, 2))])
    assert sorted(used.tolist()) == list(range(3 * 70))
    assert pages.tables.sum() == used.sum(), "entries past a length are 0"
    filled = pages.kv.float() * pages.kv_scale
    assert torch.equal(filled[64:128], filled[:64]) and torch.equal(filled[192:], filled[:18])
    assert filled[:64].isfinite().all() and 0.8 < filled[..., peers.LATENT:].std() < 1.2
