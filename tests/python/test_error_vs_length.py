"""bench/error_vs_length.py: the rule holds on the CPU backend at small lengths, and an error that is planted breaks it."""

import csv
import math
from pathlib import Path

import pytest
import torch

import snapmla

BENCH = Path(__file__).resolve().parents[2] / "bench"
ARGUMENTS = ["--device", "cpu", "--shapes", "1x64,3x32", "--lengths", "192,512", "--fixed-splits", "64,128"]
decode = snapmla.decode


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import error_vs_length

    return error_vs_length


def test_rule_holds(script, tmp_path, capsys):
    """Both files and lines: 8 cases, 2 shapes, 2 lengths, and the splits of 64 and 128 tokens among the plans."""
    assert script.main([*ARGUMENTS, "--repeat", "1", "--csv", str(tmp_path / "errors.csv")]) == 0
    assert "the rule holds on every line of ours" in capsys.readouterr().out
    first, *rest = (tmp_path / "errors.csv").read_text().splitlines()
    assert first.startswith("# CPU, torch ") and first.endswith(" ".join(["--csv", str(tmp_path / "errors.csv")]))
    lines = list(csv.DictReader(rest))
    assert list(lines[0]) == ["case", "batch", "seq_len", "splits", "rel_err", "gain"]
    points = {(line["case"], line["batch"], line["seq_len"]) for line in lines}
    assert len(points) == 8 * 2 * 2
    for case, batch, seq_len in points:
        splits = {line["splits"] for line in lines if (line["case"], line["batch"], line["seq_len"]) == (case, batch, seq_len)}
        assert splits >= {str(math.ceil(int(seq_len) / tokens)) for tokens in (64, 128)}


def planted(change):
    """decode with its out changed by `change(out, seq_lens, call number)`."""
    count = iter(range(1 << 30))

    def call(*arguments):
        out, lse = decode(*arguments)
        return change(out, arguments[5], next(count)), lse

    return call


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(lambda out, seq_lens, _: out * (0.99 if seq_lens[0] == 512 else 1), "|gain - 1| is"),
     (lambda out, seq_lens, _: out + (0.004 * out.norm(dim=-1, keepdim=True) / 512**0.5 if seq_lens[0] == 512 else 0),
      "at 192 tokens, is"),
     (lambda out, seq_lens, _: out + 0.03 * out.roll(1, -1), "allowed 0.025"),
     (lambda out, seq_lens, n: out * (1 + 2**-7 * (n % 2)), "calls with other bits is 1"),
     (lambda out, seq_lens, _: out * math.nan, "rel_err is nan")],
    ids=["shrinks", "grows", "zero-mean", "bits", "nan"])
def test_planted_error_breaks_the_rule(script, monkeypatch, capsys, change, complaint):
    monkeypatch.setattr(snapmla, "decode", planted(change))
    monkeypatch.setattr(script, "CASES", ["uniform zero-mean"])
    assert script.main([*ARGUMENTS, "--repeat", "1"]) == 1
    assert complaint in capsys.readouterr().out


class ExactKernel:
    """Stands for a peer: fp64 attention over the tensors that LibraryPeer.prepare takes, rounded to BF16."""

    name = "exact"

    def __init__(self, fp8):
        self.fp8 = fp8

    def prepare(self, problem):
        def run(set_index):
            k = problem.kv.view(torch.uint8)[problem.tables[set_index].long()].view(problem.kv.dtype)
            k = k.double().flatten(1, 2)[:, : problem.shape.longest] * problem.kv_scale.double()
            q = problem.q[:, 0].double() * problem.q_scale.double()
            p = torch.softmax(192**-0.5 * q @ k.mT, -1)
            return (p @ k[..., :512])[:, None].bfloat16()

        return run


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_peers_are_measured_on_what_they_are_given(script, fp8):
    """An exact kernel is off by the rounding of its out alone, whose rms is at most 2^-8 / sqrt(3) of a value."""
    options = script.parse_options(ARGUMENTS)
    for case in script.CASES:
        inputs = script.make_inputs(case, script.Shape("3x200x16"), options.device)
        (line,) = script.measure(script.Peer(ExactKernel(fp8), inputs), case, options)
        assert 0 < line["rel_err"] < 2**-8 / 3**0.5 and abs(line["gain"] - 1) < 1e-3
        assert script.offences([{**line, "gain": 0.2}]) == []  # the rule is for ours
