"""Normals from one seed for each sample, against torch's generator."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

import pyflowcore  # noqa: F401  (loads the operators)
from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.registry import Arm, Built, Case, benchmark
from benchmarks.rows import OPERATIONS_PER_NORMAL

_CPU_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_CUDA_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
_BATCH = 4


def _check(device: str) -> None:
    """Mean and standard deviation of a million normals, to five standard errors; and that seeds are samples."""
    op = torch.ops.pyflowcore.randn.default
    seeds = torch.tensor([5, 6, 7, 8], device=device)
    drawn = op(seeds, [1 << 18], 0, 0, torch.float32)
    count, mean, deviation = drawn.numel(), float(drawn.double().mean()), float(drawn.double().std())
    if abs(mean) > 5 / count**0.5 or abs(deviation - 1) > 5 / (2 * count) ** 0.5:
        raise AssertionError("randn does not return standard normals")
    if not torch.equal(drawn[2:3], op(seeds[2:3], [1 << 18], 0, 0, torch.float32)):
        raise AssertionError("a sample of randn depends on the batch that it is in")


def _case(n: int, dtype: torch.dtype, options: Options) -> Case:
    written = n * dtype.itemsize
    heat, sets = sets_for(written, options.device)
    batch = _BATCH if n % _BATCH == 0 else 1
    name = str(dtype).removeprefix("torch.")

    def build() -> Built:
        seeds = torch.arange(batch, device=options.device)
        ours = functools.partial(torch.ops.pyflowcore.randn.default, seeds, [n // batch], 0, 0, dtype)
        theirs = functools.partial(torch.randn, (batch, n // batch), dtype=dtype, device=options.device)
        buffers = [torch.empty(batch, n // batch, dtype=dtype, device=options.device) for _ in range(sets)]
        arms = [
            Arm("randn", "candidate", [ours]),
            Arm("torch.randn", "baseline", [theirs]),
            Arm("normal_ in place", "baseline", [buffer.normal_ for buffer in buffers]),
        ]
        arms += copy_arms(written, options.device, options.threads, rotate=heat == "rotated")
        return Built(arms, check=functools.partial(_check, options.device))

    return Case(
        f"{show_size(n)} {name}",
        {"n": n, "dtype": name},
        0,
        written,
        OPERATIONS_PER_NORMAL * n,
        heat,
        build,
        target="less time than torch.randn" if dtype == torch.float32 else "",
    )


@benchmark(
    "randn",
    summary="Philox normals, four samples with a seed each; new memory for each call on both sides.",
    least="each element written once; about 55 operations for each normal, which is what bounds it on a CPU",
    baselines=("torch.randn", "normal_ in place", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """float32 at all sizes, bfloat16 at the largest."""
    sizes = options.choose_sizes(_CPU_SIZES, _CUDA_SIZES)
    for n in sizes:
        yield _case(n, torch.float32, options)
    yield _case(max(sizes), torch.bfloat16, options)
