#!/usr/bin/env python3
"""Writes docs/python-api.md from the docstrings of the package: scripts/python_reference.py [--check]

Needs the package installed (make test-python leaves it in build/python/torch-*/bin/python). --check compares and writes nothing.
"""

import inspect
import sys
from pathlib import Path

import snapmla
import snapmla.flash_mla

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python-api.md"
SECTIONS = [
    (snapmla, ["quantize_q", "append_kv", "fetch_kv", "plan", "Plan", "decode", "combine", "QuantizedQ", "PagedCache", "pack",
               "unpack", "quantization_scale", "doctor"]),
    (snapmla.flash_mla, ["get_mla_metadata", "flash_mla_with_kvcache", "flash_mla_with_fp8_kvcache", "SchedMeta"]),
]
HEAD = """# The Python API

Made from the docstrings by `scripts/python_reference.py`; a test holds it to them. The guide is [python.md](python.md).
"""


def signature(name, thing):
    """`name(parameters)`, a line a parameter group that fits, annotations without modules."""
    parameters = inspect.signature(thing).parameters.values()
    text = ", ".join(("*, " if p.kind is p.KEYWORD_ONLY and first_keyword else "") + p.name
                     + ("" if p.default is p.empty else f"={default(p.default)}")
                     for p, first_keyword in with_first_keyword(parameters))
    return f"{name}({text})"


def with_first_keyword(parameters):
    seen = False
    for p in parameters:
        if p.name == "self":
            continue
        yield p, not seen
        seen = seen or p.kind is p.KEYWORD_ONLY


def default(value):
    return str(value) if str(value).startswith("torch.") else repr(value)


def entry(module, name):
    thing = getattr(module, name)
    lines = [f"### {name}", ""]
    if inspect.isfunction(thing):
        lines += ["    " + signature(f"{module.__name__}.{name}", thing), ""]
    lines += ["```text", inspect.getdoc(thing), "```", ""]
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if member.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            title = f"{name}.{member}" if isinstance(value, property) else signature(f"{name}.{member}", getattr(thing, member))
            lines += ["    " + title, "", "```text", inspect.getdoc(function), "```", ""]
    return lines


def reference():
    lines = [HEAD]
    for module, names in SECTIONS:
        lines += [f"## {module.__name__}", "", "```text", inspect.getdoc(module), "```", ""]
        if module is snapmla:
            lines += ["Common to all ops:", "", "```text", inspect.getdoc(inspect.getmodule(snapmla.decode)), "```", ""]
        for name in names:
            lines += entry(module, name)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(reference())
    elif PAGE.read_text() != reference():
        sys.exit(f"{PAGE} is not what the docstrings say: run scripts/python_reference.py")
