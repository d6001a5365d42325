"""The CUDA kernels of guide_, run thread by thread on the CPU, against the CPU kernels, to the bit."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from cuda_on_cpu import SIZES, GuideCall
from cuda_on_cpu import library as build
from test_cuda_bodies import BYTES, DTYPES, Arena, assert_same

# zero, eta, norm, beta, phi, p, q
RULES = {
    "star": (1, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    "star, rescaled": (1, 1.0, 0.0, 0.0, 0.7, 0.0, 1.0),
    "apg": (0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.6),
    "all": (1, 0.2, 1.5, 0.0, 0.4, 0.9, -0.8),
    "momentum": (0, 1.0, 3.0, -0.5, 0.0, 1.0, 0.7),
    "momentum and point": (0, 0.3, 3.0, 0.4, 0.5, 1.0, 0.7),
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build()


def run(
    library: ctypes.CDLL, cuda: bool, name: str, batch: int, sample: int, state: str, out: str, branches: int, shift: int
) -> tuple[int, list[np.ndarray]]:  # fmt: skip
    rule = np.array(RULES[name], dtype=np.float64)
    arena, call, numel = Arena(3), GuideCall(), batch * sample
    point, momentum = rule[1] != 1.0 and rule[5] != 0.0, rule[3] != 0.0

    def buffer(count: int, dtype: str, moved: int = 0, poison: bool = False) -> int:
        part, start = arena.add(count, dtype, moved, poison)
        return arena.parts[part].ctypes.data + start

    call.batch, call.sample, call.branches = batch, sample, branches
    call.state_dtype, call.out_dtype = DTYPES[state], DTYPES[out]
    call.rule = rule.ctypes.data
    base = buffer(branches * numel, out, shift)
    for j in range(branches):
        call.branch[j] = base + j * numel * BYTES[out]
    if point:
        call.point = buffer(numel, state)
    if momentum:
        call.momentum = buffer(numel, state)
    call.scale = buffer(batch * (branches - 1), state)
    call.scale_branch_stride, call.scale_sample_stride = batch, 1
    vectors = branches + point
    sums = vectors + vectors * (vectors + 1) // 2
    call.partial = buffer(batch * -(-sample // 1024) * sums, "float64", poison=True)
    call.mix = buffer((vectors + 1) * batch, state, poison=True)
    return library.pfc_test_guide(ctypes.byref(call), int(cuda)), arena.parts


def check(library: ctypes.CDLL, *case: object) -> int:
    _, expected = run(library, False, *case)  # type: ignore[arg-type]
    kernel, got = run(library, True, *case)  # type: ignore[arg-type]
    assert_same(expected, got, case)
    return kernel


@pytest.mark.parametrize("state", ["float32", "float64"])
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_guide_thread_by_thread(library: ctypes.CDLL, name: str, out: str, state: str) -> None:
    for batch, sample in ((1, 1), (3, 4), (2, 7), (11, 260), (2, 1028), (1, 2051), (300, 2)):
        for branches in (2,) if "momentum" in name else (2, 3):
            check(library, name, batch, sample, state, out, branches, 0)


@pytest.mark.parametrize("name", RULES)
def test_guide_at_every_size(library: ctypes.CDLL, name: str) -> None:
    for sample, shift in itertools.product(SIZES, (0, 1)):
        kernel = check(library, name, 2, sample, "float32", "bfloat16", 2, shift)
        aligned = sample % 4 == 0 and shift == 0
        assert kernel == 10 * (2 + (RULES[name][1] != 1.0)) + aligned


def test_guide_of_many_chunks_and_many_branches(library: ctypes.CDLL) -> None:
    """More chunks than stripes; the most branches there are."""
    assert check(library, "all", 2, 70_004, "float32", "float32", 2, 0) == 31
    for sample in (1028, 1029):
        assert check(library, "all", 3, sample, "float32", "float32", 8, 0) == (sample == 1028)
