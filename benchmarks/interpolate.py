"""Training's x_t and target in one pass, against the two or three lines of eager PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

import pyflowcore as pfc
from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled
from benchmarks.registry import Arm, Built, Case, benchmark
from benchmarks.rows import OPERATIONS_PER_NORMAL

_CPU_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_CUDA_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
_BATCH = 16
Tensor = torch.Tensor


def _linear(data: Tensor, t: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
    """Linear path, velocity target."""
    if x0 is None:
        x0 = torch.randn_like(data)
    t = t[:, None]
    return t * data + (1 - t) * x0, data - x0


def _vp(data: Tensor, t: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
    """Variance-preserving path, noise target (betas 0.1 and 20)."""
    if x0 is None:
        x0 = torch.randn_like(data)
    s = 1 - t[:, None]
    alpha = torch.exp(-0.25 * s**2 * 19.9 - 0.05 * s)
    return alpha * data + torch.sqrt(1 - alpha**2) * x0, x0


_PATHS: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]]] = {
    "linear": ("velocity", _linear),
    "vp": ("noise", _vp),
}


def _check(path: str, device: str) -> None:
    """Against the eager lines on fresh numbers."""
    prediction, eager = _PATHS[path]
    data, x0 = (torch.randn(8, 1000, device=device) for _ in range(2))
    t = torch.rand(8, device=device)
    got = pfc.interpolate(data, t, x0=x0, path=path, prediction=prediction)
    for mine, expected in zip((got.x_t, got.target), eager(data, t, x0), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def _case(n: int, path: str, seeded: bool, options: Options) -> Case:
    prediction, eager = _PATHS[path]
    batch = _BATCH if n % _BATCH == 0 else 1
    read, written = 4 * n * (1 if seeded else 2), 8 * n
    heat, sets = sets_for(read + written, options.device)
    name = f"{path}, {prediction}, {'seeds' if seeded else 'x0 given'}, {show_size(n)} elements"

    def build() -> Built:
        device = options.device

        def fresh() -> Tensor:
            return torch.randn(batch, n // batch, device=device)

        operands = [
            (fresh(), torch.rand(batch, device=device), None if seeded else fresh()) for _ in range(sets)
        ]
        seeds = torch.arange(batch, device=device) if seeded else None

        def ours(data: Tensor, t: Tensor, x0: Tensor | None) -> object:
            return pfc.interpolate(data, t, x0=x0, seeds=seeds, path=path, prediction=prediction)

        arms = [
            Arm("interpolate", "candidate", [functools.partial(ours, *one) for one in operands]),
            Arm("eager", "baseline", [functools.partial(eager, *one) for one in operands]),
        ]
        skipped = {}
        fast = compiled(options, name, eager, *operands[0])
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            arms.append(Arm("torch.compile", "baseline", [functools.partial(fast, *one) for one in operands]))
        arms += copy_arms(read + written, device, options.threads, rotate=heat == "rotated")
        return Built(arms, skipped, functools.partial(_check, path, device))

    operations = n * (4 + (OPERATIONS_PER_NORMAL if seeded else 0))
    return Case(name, {"n": n, "path": path, "seeded": seeded}, read, written, operations, heat, build)


@benchmark(
    "interpolate",
    summary="data, t and x0 or seeds -> x_t and target in float32; new memory for both on all sides.",
    least="data and x0 read once, x_t and target written once; 4 operations for an element, about 55 for each normal",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """Linear path with velocity and variance-preserving path with noise targets; x0 given, and drawn from seeds."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        yield _case(n, "linear", False, options)
        yield _case(n, "vp", False, options)
        yield _case(n, "linear", True, options)
