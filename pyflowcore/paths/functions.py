"""Paths given by functions: alpha and sigma as callables, their derivatives by float64 autodiff or as callables too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .named import Float, HostPath, check_times, snap_ends

__all__ = ["Custom", "SavedPath", "custom"]

Function = Callable[[Tensor], Any]

# Where two paths of one name are compared.
_PROBES = tuple(i / 16 for i in range(17))
_FINE = np.linspace(0.0, 1.0, 257)


def custom(
    alpha: Function,
    sigma: Function,
    dalpha: Function | None = None,
    dsigma: Function | None = None,
    name: str = "custom",
) -> Custom:
    """A path of your own, x_t = alpha(t) x1 + sigma(t) x0.

    Args:
        alpha, sigma: functions of t, a float64 tensor of any shape in [0, 1] (0 noise, 1 data): elementwise, from torch's
            functions, so that they can be differentiated; a constant may be a plain number. alpha / sigma must rise
            strictly, alpha(1) and sigma(0) be positive. An alpha(0) or a sigma(1) that is at most 1e-14 of the other is a
            rounded 0 and taken as 0.
        dalpha, dsigma: their time derivatives, likewise. Left out, they are taken by autodiff in float64. They may be infinite,
            or not a number, at t = 0 and t = 1: solvers that need them there refuse.
        name: what plans call it. A plan's JSON cannot hold functions: it holds the name and the path's values at 17 times,
            and a loaded plan runs on fields whose path agrees with those.

    Raises:
        TypeError, ValueError: naming the function, the time and what is wrong there; a derivative that is not that of its
            function (compared with central differences).
    """
    return Custom(alpha, sigma, dalpha, dsigma, name)


class _ByName(HostPath):
    """Paths that compare by their name and their values at probes."""

    _probed: tuple[list[float], list[float]]

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = label  # type: ignore[misc]  # of this path, not of its class

    def to_dict(self) -> dict[str, Any]:
        alpha, sigma = self._probed
        return {"name": "custom", "label": self.label, "alpha": alpha, "sigma": sigma}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ByName) or self.label != other.label:
            return False
        mine, theirs = np.asarray(self._probed), np.asarray(other._probed)
        return bool(np.all(np.abs(mine - theirs) <= 1e-12 * (1.0 + np.abs(theirs))))

    def __hash__(self) -> int:
        return hash(self.label)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label!r})"

    @property
    def noise_scale(self) -> float:
        """sigma(0): a trajectory from t = 0 begins with sigma(0) x0."""
        return self._probed[1][0]


class Custom(_ByName):
    """See :func:`custom`. Equal to another of the same name with the same values."""

    def __init__(
        self, alpha: Function, sigma: Function, dalpha: Function | None, dsigma: Function | None, name: str
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        if not name:
            raise ValueError("name must not be empty: a saved plan knows the path by it")
        for word, function in (("alpha", alpha), ("sigma", sigma), ("dalpha", dalpha), ("dsigma", dsigma)):
            if not callable(function) and not (function is None and word.startswith("d")):
                raise TypeError(f"{word} must be a function of t, got {type(function).__name__}")
        super().__init__(name)
        self._functions: dict[str, Function] = {"alpha": alpha, "sigma": sigma}
        self._derivatives: dict[str, Function | None] = {"alpha": dalpha, "sigma": dsigma}
        self._check()
        values = self.coefficients(_PROBES)
        self._probed = values[0].tolist(), values[1].tolist()

    def coefficients(self, t: npt.ArrayLike) -> tuple[Float, Float, Float, Float]:
        """alpha, sigma and their time derivatives at t in [0, 1], float64, each of t's shape."""
        times = torch.from_numpy(check_times(t).copy())
        alpha, dalpha = self._with_slope("alpha", times)
        sigma, dsigma = self._with_slope("sigma", times)
        snap_ends(times.numpy(), alpha.numpy(), sigma.numpy())
        return alpha.numpy(), sigma.numpy(), dalpha.numpy(), dsigma.numpy()

    def _values(self, t: float) -> tuple[float, float]:
        if t in (0.0, 1.0):
            return self._point(t)[:2]
        at = torch.tensor(t, dtype=torch.float64, device="cpu")
        with torch.no_grad():
            return float(self._call("alpha", at)), float(self._call("sigma", at))

    def _point(self, t: float) -> tuple[float, float, float, float]:
        alpha, sigma, dalpha, dsigma = self.coefficients(t)
        return float(alpha), float(sigma), float(dalpha), float(dsigma)

    def _call(self, word: str, t: Tensor, function: Function | None = None) -> Tensor:
        function = function or self._functions[word]
        try:
            value = function(t)
        except Exception as error:
            raise ValueError(
                f"{word} failed on a float64 tensor of times of shape {list(t.shape)} (is it written with torch's functions, "
                f"elementwise?): {error}"
            ) from error
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
        if value.dtype != torch.float64:
            raise TypeError(
                f"{word} must stay in float64, it returned {value.dtype}: paths are evaluated in float64"
            )
        if value.shape not in (t.shape, torch.Size()):
            raise ValueError(
                f"{word} must be elementwise: of times {list(t.shape)} it made {list(value.shape)}"
            )
        return value.expand(t.shape)

    def _with_slope(self, word: str, t: Tensor) -> tuple[Tensor, Tensor]:
        """A function and its derivative."""
        given = self._derivatives[word]
        if given is not None:
            with torch.no_grad():
                return self._call(word, t).clone(), self._call("d" + word, t, given).clone()
        # Plans may be built under no_grad, or under inference mode, where nothing can be differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            at = t.clone().requires_grad_(True)
            value = self._call(word, at)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), at)
            else:
                slope = torch.zeros_like(t)
        return value.detach().clone(), slope

    def _check(self) -> None:
        alpha, sigma, _, _ = self.coefficients(_FINE)
        for word, values in (("alpha", alpha), ("sigma", sigma)):
            if not np.isfinite(values).all():
                at = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ValueError(f"{word} is {values[at]} at t = {_FINE[at]}, it must be finite on [0, 1]")
            if (values < 0.0).any():
                at = int(np.flatnonzero(values < 0.0)[0])
                raise ValueError(f"{word} is {values[at]} at t = {_FINE[at]}, it must not be negative")
        if not alpha[-1] > 0.0:
            raise ValueError(f"alpha(1) is {alpha[-1]}, it must be positive: t = 1 is the data")
        if not sigma[0] > 0.0:
            raise ValueError(f"sigma(0) is {sigma[0]}, it must be positive: t = 0 is the noise")
        angle = np.arctan2(alpha, sigma)
        if not (np.diff(angle) > 0.0).all():
            at = int(np.flatnonzero(~(np.diff(angle) > 0.0))[0])
            raise ValueError(
                f"alpha / sigma must rise strictly with t (t = 0 noise, t = 1 data); from t = {_FINE[at]} to {_FINE[at + 1]} "
                f"it goes from {alpha[at]} / {sigma[at]} to {alpha[at + 1]} / {sigma[at + 1]}"
            )
        # A derivative may be infinite at an end, and differences are poor near one; a kink is likeliest at a round number.
        inside, h = _FINE[6:-7] + 0.37 * _FINE[1], 1e-6
        below, here, above = (self.coefficients(inside + shift) for shift in (-h, 0.0, h))
        for word, index, slope in (("alpha", 0, here[2]), ("sigma", 1, here[3])):
            difference = (above[index] - below[index]) / (2 * h)
            # Differences have the rounding of the values, divided by h.
            scale = np.abs(difference) + np.abs(above[index]) + 1e-3
            wrong = ~(np.abs(slope - difference) <= 1e-4 * scale)
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                source = f"d{word} is" if self._derivatives[word] else f"{word}'s derivative by autodiff is"
                raise ValueError(
                    f"{source} {slope[at]} at t = {inside[at]}, differences of {word} give {difference[at]}"
                )
            # Steps, as of a schedule looked up by integers, have a right derivative nearly everywhere.
            most = np.maximum(np.abs(slope[:-1]), np.abs(slope[1:]))
            if (jumps := np.abs(np.diff(here[index])) > 2 * most * _FINE[1] + 1e-9 * scale[1:]).any():
                at = int(np.flatnonzero(jumps)[0])
                raise ValueError(
                    f"{word} jumps from {here[index][at]} to {here[index][at + 1]} between t = {inside[at]} and "
                    f"{inside[at + 1]}; for values of a schedule there are pfc.paths.table and from_alphas_cumprod"
                )


class SavedPath(_ByName):
    """A custom path as a plan's JSON knows it: by its name and its values at 17 times. Its plan runs, on fields whose path
    agrees; nothing else can be made of it, because its formulas are not there."""

    def __init__(self, label: str, alpha: Any, sigma: Any) -> None:
        if not isinstance(label, str):
            raise TypeError(f"label must be a string, got {type(label).__name__}")
        probed = [[float(v) for v in values] for values in (alpha, sigma)]
        if any(len(values) != len(_PROBES) for values in probed):
            raise ValueError(f"path 'custom': alpha and sigma must have {len(_PROBES)} values each")
        super().__init__(label)
        self._probed = probed[0], probed[1]

    def _unknown(self) -> ValueError:
        return ValueError(
            f"the path {self.label!r} came from a plan's JSON, which cannot hold its functions: make it again with "
            "pfc.paths.custom(...)"
        )

    def coefficients(self, t: npt.ArrayLike) -> tuple[Float, Float, Float, Float]:
        raise self._unknown()

    def _values(self, t: float) -> tuple[float, float]:
        raise self._unknown()

    def _point(self, t: float) -> tuple[float, float, float, float]:
        raise self._unknown()
