"""The paths that have a name. The formulas live in ``csrc/core/path.hpp``; these classes are their thin, typed faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .. import _core

__all__ = ["VE", "VP", "Linear", "LinearVP", "Path", "Polynomial", "Trigonometric", "check_times"]

Float = npt.NDArray[np.float64]

_NUMBERS = {name: int(kind) for name, kind in _core.PathKind.__members__.items()}


def check_times(t: npt.ArrayLike) -> Float:
    """Times as a float64 array. ValueError unless all lie in [0, 1]."""
    times = np.asarray(t, dtype=np.float64)
    if times.size and not (np.all(times >= 0.0) and np.all(times <= 1.0)):
        raise ValueError(f"t must lie in [0, 1], got values from {times.min()} to {times.max()}")
    return times


def snap_ends(t: Float, alpha: Float, sigma: Float) -> None:
    """Sets in place an alpha at t = 0, or a sigma at t = 1, that is a rounding of 0 to 0: cos(pi / 2) is 6e-17 in float64, and
    would make lambda a large number where it is infinite."""
    alpha[(t == 0.0) & (np.abs(alpha) <= 1e-14 * np.abs(sigma))] = 0.0
    sigma[(t == 1.0) & (np.abs(sigma) <= 1e-14 * np.abs(alpha))] = 0.0


@dataclass(frozen=True)
class Path:
    """A Gaussian path. Use one of its subclasses, ``pfc.paths.get(name)``, or for a path of your own ``pfc.paths.custom``,
    ``pfc.paths.table`` and ``pfc.paths.from_alphas_cumprod``."""

    name: ClassVar[str]

    @property
    def _core(self) -> Any:
        """What the compiled core takes for it: its own path, or this object, whose ``_values`` and ``_point`` it calls."""
        return _core.Path(_core.PathKind.__members__[self.name])

    @property
    def code(self) -> tuple[int, float, float] | None:
        """The path as operators take it: number and two parameters; plain values, which torch.compile can trace. None of a
        path whose formula the kernels do not know."""
        return _NUMBERS[self.name], 0.0, 0.0

    def coefficients(self, t: npt.ArrayLike) -> tuple[Float, Float, Float, Float]:
        """alpha, sigma and their time derivatives at t in [0, 1], float64, each of t's shape."""
        return _core.path_coefficients(self._core, check_times(t))

    def network_times(self, t: Tensor) -> Tensor | None:
        """The times that networks of this path are trained with, where they are not t itself."""
        return None

    @property
    def noise_scale(self) -> float:
        """The standard deviation of the noise that a trajectory from t = 0 begins with."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description; ``pfc.paths.get`` takes it back."""
        return {"name": self.name}


class HostPath(Path):
    """A path whose formula the kernels do not know: the core calls ``_values`` and ``_point`` of the subclass."""

    @property
    def _core(self) -> Any:
        return self

    @property
    def code(self) -> None:
        return None


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
    def _core(self) -> Any:
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
    def _core(self) -> Any:
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
    def _core(self) -> Any:
        return _core.Path(_core.PathKind.ve, self.sigma_max)

    @property
    def code(self) -> tuple[int, float, float]:
        return _NUMBERS[self.name], self.sigma_max, 0.0

    @property
    def noise_scale(self) -> float:
        return self.sigma_max

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sigma_max": self.sigma_max}
