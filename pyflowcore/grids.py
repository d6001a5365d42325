"""Time grids: where a trajectory of n steps is evaluated. A grid is turned into n + 1 float64 times, 0 (noise) to 1
(data), once, when a plan is built. The formulas live in ``csrc/plan/grids.cpp``. Reversed, a grid runs from data to noise,
which inverts a sample: ``pfc.grids.karras().reversed()``.

Grids compose by methods, which apply in the order in which they are written, each to the times that the one before gives:
``pfc.grids.beta().shifted(3.0).terminal(0.1)`` takes beta quantiles, shifts them, and stretches the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import _core, paths

__all__ = [
    "Beta",
    "Cosine",
    "Exponential",
    "Grid",
    "Karras",
    "LambdaUniform",
    "LinearQuadratic",
    "LogitNormal",
    "Partial",
    "Reversed",
    "Shifted",
    "Terminal",
    "Times",
    "Uniform",
    "beta",
    "cosine",
    "dynamic_shift",
    "exponential",
    "get",
    "karras",
    "lambda_uniform",
    "linear_quadratic",
    "logit_normal",
    "shifted",
    "sigmas",
    "times",
    "uniform",
]


class Grid:
    """A rule that gives n + 1 increasing times for n steps."""

    def times(self, steps: int) -> list[float]:
        """The grid's times, float64, for a number of steps."""
        raise NotImplementedError(f"{type(self).__name__} does not say its times")

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        """The same on a path, for grids that are made of its noise levels."""
        return self.times(steps)

    @property
    def fixed_steps(self) -> int | None:
        """The only number of steps that the grid has, or None."""
        return None

    def shifted(self, shift: float) -> Shifted:
        """This grid, its noise levels shifted; see :class:`Shifted`."""
        return Shifted(shift, self)

    def dynamic_shift(self, tokens: int, form: str = "exponential") -> Shifted:
        """This grid, shifted as the number of tokens wants it; see :func:`dynamic_shift`."""
        return Shifted(_shift_of(tokens, form), self)

    def terminal(self, level: float) -> Terminal:
        """This grid, stretched so that its last noise level above 0 is ``level``; see :class:`Terminal`."""
        return Terminal(level, self)

    def partial(self, strength: float) -> Partial:
        """The last part of this grid, for image to image; see :class:`Partial`."""
        return Partial(strength, self)

    def reversed(self) -> Reversed:
        """This grid from its last time to its first, for inversion; see :class:`Reversed`."""
        return Reversed(self)


def _check_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"steps must be an integer, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps}")
    return int(steps)


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


@dataclass(frozen=True)
class Uniform(Grid):
    """t_i = i / n."""

    def times(self, steps: int) -> list[float]:
        return _core.uniform_grid(_check_steps(steps))


@dataclass(frozen=True)
class Shifted(Grid):
    """A grid with the noise level s = 1 - t moved to k s / (1 + (k - 1) s) (Esser et al. 2024, eq. 23).

    A shift above 1 spends more steps near the noise; 3 is usual for latent images.
    """

    shift: float
    base: Grid = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        _check_number("shift", self.shift)
        if not (np.isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"shift must be a positive finite number, got {self.shift}")

    @property
    def fixed_steps(self) -> int | None:
        return self.base.fixed_steps

    def times(self, steps: int) -> list[float]:
        return _core.shift_grid(self.base.times(steps), float(self.shift))

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        return _core.shift_grid(self.base.times_on(path, steps), float(self.shift))


@dataclass(frozen=True)
class Terminal(Grid):
    """A grid stretched so that its last noise level above 0 is ``level``: 1 - t becomes 1 - t (1 - level) / t_last
    (LTX-Video's, and diffusers', shift_terminal). The end, t = 1, stays."""

    level: float
    base: Grid = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        _check_number("terminal", self.level)
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"terminal must lie inside (0, 1), got {self.level}")

    @property
    def fixed_steps(self) -> int | None:
        return self.base.fixed_steps

    def times(self, steps: int) -> list[float]:
        return _core.terminal_grid(self.base.times(steps), float(self.level))

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        return _core.terminal_grid(self.base.times_on(path, steps), float(self.level))


@dataclass(frozen=True)
class Reversed(Grid):
    """A grid's times in the opposite order: a plan on it runs backwards, from data (t = 1) to noise (t = 0)."""

    base: Grid = field(default_factory=Uniform)

    @property
    def fixed_steps(self) -> int | None:
        return self.base.fixed_steps

    def times(self, steps: int) -> list[float]:
        return self.base.times(steps)[::-1]

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        return self.base.times_on(path, steps)[::-1]


@dataclass(frozen=True)
class Karras(Grid):
    """n noise levels evenly spaced in their rho-th root, from sigma_max down to sigma_min, then 0 (Karras et al. 2022, eq. 5).

    ``levels`` says what a level is: "sigma" the flow's 1 - t, at most 1; "rho" the ratio sigma / alpha of the plan's path, as
    EDM models count it. A sigma_max above the path's highest ratio is that ratio, at t = 0; one below it begins the grid
    inside (0, 1), where x0 is the state at that level.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 1.0
    levels: str = "sigma"

    def __post_init__(self) -> None:
        for name in ("rho", "sigma_min", "sigma_max"):
            _check_number(name, getattr(self, name))
        if self.levels not in ("sigma", "rho"):
            raise ValueError(f"levels must be 'sigma' or 'rho', got {self.levels!r}")

    def times(self, steps: int) -> list[float]:
        return self.times_on(paths.Linear(), steps)

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        numbers = float(self.rho), float(self.sigma_min), float(self.sigma_max)
        if self.levels == "rho":
            return _core.karras_rho_grid(path._core, _check_steps(steps), *numbers)
        return _core.karras_grid(_check_steps(steps), *numbers)


@dataclass(frozen=True)
class Exponential(Grid):
    """n noise levels 1 - t in geometric sequence, from sigma_max down to sigma_min, then 0 (Crowson's k-diffusion)."""

    sigma_min: float = 0.002
    sigma_max: float = 1.0

    def __post_init__(self) -> None:
        _check_number("sigma_min", self.sigma_min)
        _check_number("sigma_max", self.sigma_max)

    def times(self, steps: int) -> list[float]:
        return _core.exponential_grid(_check_steps(steps), float(self.sigma_min), float(self.sigma_max))


@dataclass(frozen=True)
class Beta(Grid):
    """Quantiles i / n of the beta distribution in t (Lee et al. 2024): a = b = 0.6 spends more steps at both ends."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        _check_number("a", self.a)
        _check_number("b", self.b)

    def times(self, steps: int) -> list[float]:
        return _core.beta_grid(_check_steps(steps), float(self.a), float(self.b))


@dataclass(frozen=True)
class LogitNormal(Grid):
    """Quantiles i / n of the logit-normal distribution in t (Esser et al. 2024, eq. 19), from which training draws its times:
    t = 1 / (1 + exp(-(mean + std z))), z the normal quantile."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_number("mean", self.mean)
        _check_number("std", self.std)

    def times(self, steps: int) -> list[float]:
        return _core.logit_normal_grid(_check_steps(steps), float(self.mean), float(self.std))


@dataclass(frozen=True)
class LinearQuadratic(Grid):
    """``linear_steps`` even steps (default: half of them) up to t = threshold, then a parabola with the same slope there, to
    t = 1 (Genmo's Mochi; Movie Gen, Polyak et al. 2024): small steps near the noise, as if there were many."""

    threshold: float = 0.025
    linear_steps: int | None = None

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold)
        if self.linear_steps is not None:
            if isinstance(self.linear_steps, bool) or not isinstance(self.linear_steps, (int, np.integer)):
                raise TypeError(f"linear_steps must be an integer, got {type(self.linear_steps).__name__}")
            if self.linear_steps < 1:
                raise ValueError(f"linear_steps must be a positive integer, got {self.linear_steps}")

    def times(self, steps: int) -> list[float]:
        return _core.linear_quadratic_grid(
            _check_steps(steps), float(self.threshold), int(self.linear_steps or 0)
        )


@dataclass(frozen=True)
class Cosine(Grid):
    """t_i = 1 - cos(pi i / 2 n), small steps near the noise (Du et al. 2024, CosyVoice)."""

    def times(self, steps: int) -> list[float]:
        return _core.cosine_grid(_check_steps(steps))


@dataclass(frozen=True)
class LambdaUniform(Grid):
    """Times uniform in lambda = log(alpha / sigma) of the plan's path, from lo to hi (Lu et al. 2022).

    lambda is infinite where alpha or sigma vanishes, so the bounds are finite: with ``whole`` the times from lo to hi, n - 1 of
    them, lie between 0 and 1 (a single one in the middle); without, all n + 1 go from lo to hi, inside (0, 1).
    """

    lo: float
    hi: float
    whole: bool = True

    def __post_init__(self) -> None:
        _check_number("lo", self.lo)
        _check_number("hi", self.hi)

    def times(self, steps: int) -> list[float]:
        return self.times_on(paths.Linear(), steps)

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        return _core.lambda_grid(
            path._core, _check_steps(steps), float(self.lo), float(self.hi), bool(self.whole)
        )


@dataclass(frozen=True)
class Partial(Grid):
    """The end of a grid, from about noise level ``strength`` on: a trajectory of n steps takes the last n of the base's
    round(n / strength) (Meng et al. 2022, SDEdit). What other libraries call m steps at a strength is n = strength m here:
    ``steps`` are those that are taken. A base of given times keeps the last round(strength m) of its m steps.

    It begins inside (0, 1), where ``init=`` gives the state; a strength of 1 is the whole grid.
    """

    strength: float
    base: Grid = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        _check_number("strength", self.strength)
        if not 0.0 < self.strength <= 1.0:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")

    @property
    def fixed_steps(self) -> int | None:
        whole = self.base.fixed_steps
        return None if whole is None else max(1, round(self.strength * whole))

    def times(self, steps: int) -> list[float]:
        return self.base.times(self._whole(steps))[-steps - 1 :]

    def times_on(self, path: paths.Path, steps: int) -> list[float]:
        return self.base.times_on(path, self._whole(steps))[-steps - 1 :]

    def _whole(self, steps: int) -> int:
        """The base's number of steps."""
        fixed = self.base.fixed_steps
        if fixed is None:
            return round(_check_steps(steps) / self.strength)
        if steps != self.fixed_steps:
            raise ValueError(
                f"steps is {steps}, but strength {self.strength} of the grid's {fixed} steps is {self.fixed_steps}"
            )
        return fixed


@dataclass(frozen=True)
class Times(Grid):
    """Exactly these times; the number of steps follows from them."""

    values: tuple[float, ...]

    @property
    def fixed_steps(self) -> int | None:
        return len(self.values) - 1

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


def _shift_of(tokens: int, form: str) -> float:
    if isinstance(tokens, bool) or not isinstance(tokens, (int, np.integer)):
        raise TypeError(f"tokens must be an integer, got {type(tokens).__name__}")
    if tokens < 1:
        raise ValueError(f"tokens must be a positive integer, got {tokens}")
    if form not in ("exponential", "linear"):
        raise ValueError(f"form must be 'exponential' or 'linear', got {form!r}")
    mu = 0.5 + (1.15 - 0.5) * (int(tokens) - 256) / (4096 - 256)
    return math.exp(mu) if form == "exponential" else mu


def dynamic_shift(tokens: int, form: str = "exponential") -> Shifted:
    """The uniform grid shifted by e^mu, with mu linear in the number of tokens: 0.5 at 256, 1.15 at 4096 (FLUX.1, Black Forest
    Labs 2024). The form "linear" shifts by mu itself."""
    return Uniform().dynamic_shift(tokens, form)


def karras(
    rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 1.0, levels: str = "sigma"
) -> Karras:
    """Levels evenly spaced in their rho-th root, in 1 - t or, for EDM models, in sigma / alpha; see :class:`Karras`."""
    return Karras(rho, sigma_min, sigma_max, levels)


def exponential(sigma_min: float = 0.002, sigma_max: float = 1.0) -> Exponential:
    """Levels in geometric sequence; see :class:`Exponential`."""
    return Exponential(sigma_min, sigma_max)


def beta(a: float = 0.6, b: float = 0.6) -> Beta:
    """Quantiles of the beta distribution; see :class:`Beta`."""
    return Beta(a, b)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> LogitNormal:
    """Quantiles of the logit-normal distribution; see :class:`LogitNormal`."""
    return LogitNormal(mean, std)


def linear_quadratic(threshold: float = 0.025, linear_steps: int | None = None) -> LinearQuadratic:
    """Even steps, then a parabola; see :class:`LinearQuadratic`."""
    return LinearQuadratic(threshold, linear_steps)


def cosine() -> Cosine:
    """t_i = 1 - cos(pi i / 2 n)."""
    return Cosine()


def lambda_uniform(lo: float, hi: float, whole: bool = True) -> LambdaUniform:
    """Uniform in lambda = log(alpha / sigma) between finite bounds; see :class:`LambdaUniform`."""
    return LambdaUniform(lo, hi, whole)


def times(values: npt.ArrayLike) -> Times:
    """A grid of given times: at least two, finite, in [0, 1], strictly increasing, or strictly decreasing to run backwards."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"times must be one-dimensional, got shape {array.shape}")
    _core.check_times(array.tolist())
    return Times(tuple(array.tolist()))


def sigmas(values: npt.ArrayLike) -> Times:
    """A grid from another library's noise levels 1 - t, strictly falling inside [0, 1]; a trajectory that begins below 1 (image
    to image) or ends above 0 is a partial one, whose x0 is the state at the first level."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"sigmas must be one-dimensional, got shape {array.shape}")
    if array.size < 2:
        raise ValueError(f"sigmas: at least two are needed, got {array.size}")
    if not (
        np.isfinite(array).all() and array.max() <= 1.0 and array.min() >= 0.0 and np.all(np.diff(array) < 0)
    ):
        raise ValueError(f"sigmas must fall strictly inside [0, 1], got {array.tolist()}")
    return times(1.0 - array)


def get(grid: Grid | str | Sequence[float] | npt.NDArray[np.float64] | None) -> Grid:
    """A grid from itself, "uniform", None (uniform) or an array of times."""
    if grid is None:
        return Uniform()
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str):
        if grid != "uniform":
            raise ValueError(
                f"grid: unknown name {grid!r}, allowed are 'uniform', pfc.grids.shifted(s) and its like, and arrays of times"
            )
        return Uniform()
    return times(grid)
