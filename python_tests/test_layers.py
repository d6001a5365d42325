"""Arrows run one way: core <- plan, cpu, cuda <- torch, python. This reads every include of csrc and says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".hpp", ".h", ".cpp", ".cu", ".cuh"})
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
# What each layer may include of the others.
MAY = {
    "core": set(),
    "plan": {"core"},
    "cpu": {"core"},
    "cuda": {"core"},
    "torch": {"core", "cpu", "cuda"},
    "python": {"core", "plan"},
}
FOREIGN = re.compile(r"torch/|ATen|c10/|pybind11|Python\.h")
CUDA_RUNTIME = re.compile(r"cuda|cub/|thrust|cooperative_groups")


def includes(path):
    return INCLUDE.findall(path.read_text())


def test_there_is_something_to_read():
    assert {path.relative_to(CSRC).parts[0] for path in FILES} >= {"core", "plan", "cpu", "torch", "python"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CSRC)))
def test_includes(path):
    layer = path.relative_to(CSRC).parts[0]
    for kind, name in includes(path):
        if kind == '"':
            target = (path.parent / name).resolve()
            assert target.exists(), f"{name} is not beside {path.name}"
            other = target.relative_to(CSRC).parts[0]
            assert other == layer or other in MAY[layer], f"{layer} includes {other}: {name}"
            continue
        if layer in ("core", "plan", "cpu", "cuda"):
            assert not FOREIGN.search(name), f"{layer} includes {name}"
        if layer in ("core", "plan", "cpu", "python"):
            assert not CUDA_RUNTIME.search(name), f"{layer} includes {name}"
        if layer == "python":
            assert not re.search(r"torch/|ATen|c10/", name), name
        if layer == "torch":
            # The LibTorch Stable ABI, and nothing else of torch.
            stable = re.match(r"torch/(csrc/stable|csrc/inductor/aoti_torch|headeronly)/", name)
            assert stable or not re.search(r"torch/|ATen|c10/", name), name


@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name == "core"], ids=lambda path: path.name)
def test_the_kernels_arithmetic_uses_no_library_maths(path):
    """exact_math.hpp is the only maths: a libm call would not give the same bits everywhere."""
    assert not {name for _, name in includes(path)} & {"cmath", "math.h", "random"}
    text = re.sub(r"//.*", "", path.read_text())
    assert not re.search(r"\bstd::(sin|cos|exp|log|sqrt|fma|pow)\b|\b__?fma|\bfmaf?\(", text)
