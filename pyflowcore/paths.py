"""Paths x_t = alpha(t) x1 + sigma(t) x0 between noise (t = 0) and data (t = 1).

The formulas live in ``csrc/core/path.hpp``; these classes are their thin, typed faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import _core

__all__ = ["VE", "VP", "Linear", "LinearVP", "Path", "Polynomial", "Trigonometric", "get"]

Float = npt.NDArray[np.float64]

_NUMBERS = {name: int(kind) for name, kind in _core.PathKind.__members__.items()}


@dataclass(frozen=True)
class Path:
    """A Gaussian path. Use one of its subclasses, or ``pfc.paths.get(name)``."""

    name: ClassVar[str]

    @property
    def _core(self) -> _core.Path:
        return _core.Path(_core.PathKind.__members__[self.name])

    @property
    def code(self) -> tuple[int, float, float]:
        """The path as operators take it: number and two parameters; plain values, which torch.compile can trace."""
        return _NUMBERS[self.name], 0.0, 0.0

    def coefficients(self, t: npt.ArrayLike) -> tuple[Float, Float, Float, Float]:
        """alpha, sigma and their time derivatives at t in [0, 1], float64, each of t's shape."""
        times = np.asarray(t, dtype=np.float64)
        if times.size and not (np.all(times >= 0.0) and np.all(times <= 1.0)):
            raise ValueError(f"t must lie in [0, 1], got values from {times.min()} to {times.max()}")
        return _core.path_coefficients(self._core, times)

    @property
    def noise_scale(self) -> float:
        """The standard deviation of the noise that a trajectory from t = 0 begins with."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description; ``pfc.paths.get`` takes it back."""
        return {"name": self.name}


@dataclass(frozen=True)
class Linear(Path):
    """alpha = t, sigma = 1 - t: CondOT (Lipman et al. 2023), rectified flow (Liu et al. 2023)."""

    name: ClassVar[str] = "linear"


@dataclass(frozen=True)
class Trigonometric(Path):
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): the GVP path (Albergo & Vanden-Eijnden 2023)."""

    name: ClassVar[str] = "trigonometric"


@dataclass(frozen=True)
class VP(Path):
    """The variance-preserving diffusion path (Song et al. 2021, eq. 29) with diffusion time s = 1 - t:
    alpha = exp(-s^2 (beta_max - beta_min) / 4 - s beta_min / 2), sigma = sqrt(1 - alpha^2)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    name: ClassVar[str] = "vp"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta_min) and self.beta_min >= 0.0):
            raise ValueError(f"beta_min must be a finite number >= 0, got {self.beta_min}")
        if not (math.isfinite(self.beta_max) and self.beta_max > self.beta_min):
            raise ValueError(
                f"beta_max must be finite and above beta_min = {self.beta_min}, got {self.beta_max}"
            )

    @property
    def _core(self) -> _core.Path:
        return _core.Path(_core.PathKind.vp, self.beta_min, self.beta_max)

    @property
    def code(self) -> tuple[int, float, float]:
        return _NUMBERS[self.name], self.beta_min, self.beta_max

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "beta_min": self.beta_min, "beta_max": self.beta_max}


@dataclass(frozen=True)
class Polynomial(Path):
    """alpha = t^n, sigma = 1 - t^n: ``polynomial(2)`` and the like; n = 1 is the linear path.

    For n >= 2 the velocity vanishes at t = 0 and determines nothing there: fields that predict it begin inside (0, 1).
    """

    n: int = 2
    name: ClassVar[str] = "polynomial"

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, (int, np.integer)):
            raise TypeError(f"n must be an integer, got {type(self.n).__name__}")
        if not 1 <= self.n <= 64:
            raise ValueError(f"n must lie in 1 to 64, got {self.n}")

    @property
    def _core(self) -> _core.Path:
        return _core.Path(_core.PathKind.polynomial, float(self.n))

    @property
    def code(self) -> tuple[int, float, float]:
        return _NUMBERS[self.name], float(self.n), 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "n": int(self.n)}


@dataclass(frozen=True)
class LinearVP(Path):
    """alpha = t, sigma = sqrt(1 - t^2): variance preserving; sigma' is minus infinity at t = 1."""

    name: ClassVar[str] = "linear_vp"


@dataclass(frozen=True)
class VE(Path):
    """The variance-exploding path (Song & Ermon 2019) of EDM models (Karras et al. 2022): alpha = 1, sigma = sigma_max (1 - t).

    The state is data + sigma * noise; at t = 0 it is taken as sigma_max * noise, and ``shape=`` starts there.
    """

    sigma_max: float = 80.0
    name: ClassVar[str] = "ve"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma_max) and self.sigma_max > 0.0):
            raise ValueError(f"sigma_max must be a positive finite number, got {self.sigma_max}")

    @property
    def _core(self) -> _core.Path:
        return _core.Path(_core.PathKind.ve, self.sigma_max)

    @property
    def code(self) -> tuple[int, float, float]:
        return _NUMBERS[self.name], self.sigma_max, 0.0

    @property
    def noise_scale(self) -> float:
        return self.sigma_max

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sigma_max": self.sigma_max}


_BY_NAME: dict[str, type[Path]] = {
    cls.name: cls for cls in (Linear, Trigonometric, VP, Polynomial, LinearVP, VE)
}


def get(path: str | Path | dict[str, Any]) -> Path:
    """A path from its name ("linear", "trigonometric", "vp", "polynomial", "linear_vp", "ve"), its description, or itself."""
    if isinstance(path, Path):
        return path
    if isinstance(path, dict):
        options = dict(path)
        name = options.pop("name", None)
    elif isinstance(path, str):
        name, options = path, {}
    else:
        raise TypeError(
            f"path must be a name, a pfc.paths.Path or its description, got {type(path).__name__}"
        )
    if name not in _BY_NAME:
        raise ValueError(f"path: unknown name {name!r}, allowed are {', '.join(_BY_NAME)}")
    try:
        return _BY_NAME[name](**options)
    except TypeError:
        raise ValueError(f"path {name!r}: unknown options {sorted(options)}") from None


def from_core(path: _core.Path) -> Path:
    """The Python face of a path of the compiled core."""
    if path.kind == _core.PathKind.vp:
        return VP(path.a, path.b)
    if path.kind == _core.PathKind.polynomial:
        return Polynomial(int(path.a))
    if path.kind == _core.PathKind.ve:
        return VE(path.a)
    return _BY_NAME[path.kind.name]()
