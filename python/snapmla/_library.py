"""The compiled ops: loads them into torch.ops.snapmla and turns their errors into Python's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

_LIBRARY = Path(__file__).parent / "libsnapmla_torch.so"
_OPS = ("quantize_q", "append_kv", "fetch_kv", "plan", "decode", "combine", "cache", "tensor", "backend")


def load() -> None:
    """Loads the ops once; importing the package does it."""
    torch_version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if torch_version < (2, 10):
        raise ImportError(f"snapmla needs torch 2.10 or later; this is torch {torch.__version__}")
    if not _LIBRARY.exists():
        raise ImportError(f"snapmla is not built: {_LIBRARY} is missing; install the package (pip install .)")
    torch.ops.load_library(str(_LIBRARY))


def eager(op: torch._ops.OpOverload) -> Callable:
    """What `op` calls in turn: a frame of Python less, 0.3 us for the 13 arguments of a decode. torch.compile does not know
    it: where torch.compiler.is_dynamo_compiling(), call `op`."""
    return op._op


def require(what: str, condition: bool, rule: str, *got: object) -> None:
    """Throws ValueError `[what] rule; got ...`. The words are found only then: some rules are looked at in every call."""
    if not condition:
        raise ValueError(f"[{what}] {rule}" + ("; got " + ", ".join(map(_words, got)) if got else ""))


def _words(got: object) -> str:
    if not isinstance(got, torch.Tensor):
        return repr(got)
    text = f"{str(got.dtype).removeprefix('torch.')} {list(got.shape)}"
    return text if got.is_contiguous() else f"{text} with strides {list(got.stride())}"


def python_error(op: str, error: RuntimeError) -> Exception:
    """The exception a Python user expects, with the text of the C++ core.

    The core's texts begin with the op's name in brackets where an argument is at fault; torch releases differ in the
    exception they make of that. What no op has said comes from torch's own look at argument types, or is a failure
    that is not the caller's.
    """
    text = str(error)
    if text.startswith(tuple(f"[{name}] " for name in _OPS)):
        return ValueError(text)
    if "Expected a value of type" in text:
        line = next(line for line in text.splitlines() if "Expected a value of type" in line)
        return TypeError(f"[{op}] {line[line.index('Expected a value'):]}")
    return error
