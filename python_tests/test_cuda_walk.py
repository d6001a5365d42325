"""The index arithmetic of the CUDA kernels, on the CPU: every element is visited exactly once, past 2^31 elements too."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cuda_on_cpu import SIZES
from cuda_on_cpu import library as build


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build()


@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 5, 7, 10, 255, 256, 257, 641, 2**16, 2**29, 2**31 - 1, 2**31, 2**31 + 1,
                                     10**12 + 39, 2**61 - 1, 2**61, 2**62 - 1])  # fmt: skip
def test_division_is_exact(library: ctypes.CDLL, divisor: int) -> None:
    for largest in (2**31, 2**40 + 12345, 2**63 - 1):
        assert library.pfc_test_divider(divisor, largest, 20000) == 0


def visits(
    library: ctypes.CDLL, batch: int, sample: int, by_sample: int, vector: int, head: int, vectors: int
) -> None:
    seen = np.zeros(batch * sample, dtype=np.int32)
    wrong = library.pfc_test_visits(batch, sample, by_sample, vector, head, vectors, seen.ctypes.data)
    where = f"batch {batch}, sample {sample}, by_sample {by_sample}, vector {vector}, head {head}, {vectors} a thread"
    assert wrong == 0, f"{where}: {wrong} elements outside, or of the wrong sample or block"
    missed, often = np.flatnonzero(seen == 0), np.flatnonzero(seen > 1)
    assert missed.size == 0 and often.size == 0, f"{where}: missed {missed[:5]}, more than once {often[:5]}"


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("vectors", [1, 2])
def test_every_element_is_visited_once(library: ctypes.CDLL, batch: int, vectors: int) -> None:
    for sample in SIZES:
        for head in range(4):
            visits(library, batch, sample, 0, 1, head, vectors)
        if sample % 4 == 0:
            visits(library, batch, sample, 1, 1, 0, vectors)
        visits(library, batch, sample, 0, 0, 0, 1)
        visits(library, batch, sample, 1, 0, 0, 1)


def test_many_small_samples_are_visited_once(library: ctypes.CDLL) -> None:
    for sample in (1, 2, 3, 4, 5, 8):
        for batch in (255, 256, 257, 1023, 1024, 1025, 3000):
            visits(library, batch, sample, 1, 0, 0, 1)
            if sample % 4 == 0:
                visits(library, batch, sample, 1, 1, 0, 2)


@pytest.mark.parametrize(
    ("batch", "sample"),
    [
        (1, 2**31 - 1),
        (1, 2**31),
        (1, 2**31 + 4),
        (3, 2**30 + 4),
        (2**31 + 3, 1),
        (2**30 + 1, 4),
        (2**31 + 1, 3),
        (5, 2**33 + 8),
        (2**20 + 1, 2**16 + 4),
        (7, 2**36 + 3),
    ],
)
def test_walks_past_two_billion_elements(library: ctypes.CDLL, batch: int, sample: int) -> None:
    for vectors in (1, 2):
        for head in range(4):
            assert library.pfc_test_huge(batch, sample, 0, 1, head, vectors, 20000) == 0
        if sample % 4 == 0:
            assert library.pfc_test_huge(batch, sample, 1, 1, 0, vectors, 20000) == 0
    assert library.pfc_test_huge(batch, sample, 0, 0, 0, 1, 20000) == 0
    assert library.pfc_test_huge(batch, sample, 1, 0, 0, 1, 20000) == 0


def test_guidance_gives_every_element_its_chunk_and_lane(library: ctypes.CDLL) -> None:
    for sample in SIZES:
        for batch in (1, 2, 3, 9):
            seen = np.zeros(batch * sample, dtype=np.int32)
            assert library.pfc_test_guide_visits(batch, sample, seen.ctypes.data) == 0, (batch, sample)
            assert (seen == 1).all(), (batch, sample)
