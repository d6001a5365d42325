"""The two ceilings of a machine: how fast it copies memory, by footprint, and how fast it multiplies matrices."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from benchmarks.copying import copy_arms
from benchmarks.memory import heat_of
from benchmarks.options import Options, show_size
from benchmarks.registry import Arm, Built, Case, benchmark

_CPU_SIZES = tuple(1 << bits for bits in (12, 14, 16, 18, 20, 22, 24))
_CUDA_SIZES = (1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28)
_MATRIX = {"cpu": 2048, "cuda": 8192}


def _copy_case(n: int, options: Options) -> Case:
    half = 4 * n
    heat = heat_of(2 * half, options.device)

    def build() -> Built:
        return Built(copy_arms(2 * half, options.device, options.threads, rotate=heat == "rotated"))

    return Case(f"copy of {show_size(n)} float32", {"n": n}, half, half, 0, heat, build)


def _matrix_case(size: int, options: Options) -> Case:
    def build() -> Built:
        a, b = (torch.randn(size, size, device=options.device) for _ in range(2))
        out = torch.empty_like(a)
        return Built([Arm("torch.mm", "ceiling", [functools.partial(torch.mm, a, b, out=out)])])

    # Bytes are left at none: the rate of this case is that of its operations.
    return Case(f"float32 matrix product, {size} cubed", {"n": size}, 0, 0, 2 * size**3, "hot", build)


@benchmark(
    "ceilings",
    summary="Copy bandwidth by footprint, with ordinary and streaming stores; rate of a large float32 matrix product.",
    least="4 n bytes read and 4 n written; 2 n^3 operations",
    baselines=(),
)
def cases(options: Options) -> Iterator[Case]:
    """Copies of n float32 elements, then one matrix product (TF32 stays off, as torch leaves it)."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        yield _copy_case(n, options)
    yield _matrix_case(_MATRIX[options.device], options)
