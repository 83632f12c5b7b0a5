"""The example runs, and the API page is what the docstrings say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(script, *arguments):
    done = subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_example(device):
    """Off by what the formats round: e4m3 at most 2^-4 of a latent, bf16 2^-8 of P, queries and out together."""
    report = run("examples/decode_step.py", "--device", device.type, "--batch", "2", "--context", "130")
    errors = {name: float(error) for name, error in re.findall(r"(fp8|bf16): relative error (\S+),", report)}
    assert errors["fp8"] < 2**-4 and errors["bf16"] < 2**-7
    assert "cache 247,296 bytes" in report and "cache 442,368 bytes" in report


def test_reference_page():
    run("scripts/python_reference.py", "--check")
