"""Time grids: where a trajectory of n steps is evaluated. A grid is turned into n + 1 float64 times, 0 (noise) to 1
(data), once, when a plan is built. The formulas live in ``csrc/plan/grids.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import _core

__all__ = ["Grid", "Shifted", "Times", "Uniform", "get", "shifted", "times", "uniform"]


class Grid:
    """A rule that gives n + 1 increasing times for n steps."""

    def times(self, steps: int) -> list[float]:
        """The grid's times, float64, for a number of steps."""
        raise NotImplementedError(f"{type(self).__name__} does not say its times")


def _check_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"steps must be an integer, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps}")
    return int(steps)


@dataclass(frozen=True)
class Uniform(Grid):
    """t_i = i / n."""

    def times(self, steps: int) -> list[float]:
        return _core.uniform_grid(_check_steps(steps))


@dataclass(frozen=True)
class Shifted(Grid):
    """The uniform grid with the noise level s = 1 - t moved to k s / (1 + (k - 1) s) (Esser et al. 2024, eq. 23).

    A shift above 1 spends more steps near the noise; 3 is usual for latent images.
    """

    shift: float

    def __post_init__(self) -> None:
        if isinstance(self.shift, bool) or not isinstance(self.shift, (int, float, np.number)):
            raise TypeError(f"shift must be a number, got {type(self.shift).__name__}")
        if not (np.isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"shift must be a positive finite number, got {self.shift}")

    def times(self, steps: int) -> list[float]:
        return _core.shift_grid(_core.uniform_grid(_check_steps(steps)), float(self.shift))


@dataclass(frozen=True)
class Times(Grid):
    """Exactly these times; the number of steps follows from them."""

    values: tuple[float, ...]

    def times(self, steps: int) -> list[float]:
        if steps != len(self.values) - 1:
            raise ValueError(
                f"steps is {steps}, but the grid has {len(self.values)} times, that is {len(self.values) - 1} steps"
            )
        return list(self.values)


def uniform() -> Uniform:
    """t_i = i / n."""
    return Uniform()


def shifted(shift: float) -> Shifted:
    """The uniform grid with a static shift of the noise level; see :class:`Shifted`."""
    return Shifted(shift)


def times(values: npt.ArrayLike) -> Times:
    """A grid of given times: at least two, finite, in [0, 1], strictly increasing."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"times must be one-dimensional, got shape {array.shape}")
    _core.check_times(array.tolist())
    return Times(tuple(array.tolist()))


def get(grid: Grid | str | Sequence[float] | npt.NDArray[np.float64] | None) -> Grid:
    """A grid from itself, "uniform", None (uniform) or an array of times."""
    if grid is None:
        return Uniform()
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str):
        if grid != "uniform":
            raise ValueError(
                f"grid: unknown name {grid!r}, allowed are 'uniform', pfc.grids.shifted(s) and arrays of times"
            )
        return Uniform()
    return times(grid)
