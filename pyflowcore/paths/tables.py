"""Paths given by a table of values, discrete diffusion schedules among them.

Between the knots lambda = log(alpha / sigma) is a monotone cubic (Fritsch & Carlson 1980), and log sqrt(alpha^2 + sigma^2) a
cubic; alpha and sigma follow from the two, and their derivatives from those of the cubics, so that they agree with the values
to rounding. On a first or last interval where lambda is infinite at the end (alpha or sigma is 0 there), the angle whose
tangent is alpha / sigma, or sigma / alpha, is the monotone cubic in place of lambda: it is finite, and exact at the end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .named import Float, HostPath, check_times, snap_ends

__all__ = ["AlphasCumprod", "Table", "from_alphas_cumprod", "table"]


def table(t: npt.ArrayLike, alpha: npt.ArrayLike, sigma: npt.ArrayLike) -> Table:
    """A path given by its values.

    Args:
        t: times, one-dimensional, strictly increasing from 0 to 1, at least 4 of them.
        alpha, sigma: the values there: finite, not negative, alpha / sigma strictly increasing, alpha[-1] and sigma[0]
            positive. An alpha[0] or a sigma[-1] that is at most 1e-14 of the other is a rounded 0 and taken as 0.

    Between the times lambda = log(alpha / sigma) is a monotone cubic and log sqrt(alpha^2 + sigma^2) a cubic, with continuous
    first derivatives; where lambda is infinite at an end, the angle atan(alpha / sigma) takes its place on that interval.
    Saved in full in a plan's JSON.

    Raises:
        ValueError: naming the argument, the index and what is wrong there.
    """
    return Table(t, alpha, sigma)


def from_alphas_cumprod(alphas_cumprod: npt.ArrayLike) -> AlphasCumprod:
    """The path of a discrete diffusion schedule (DDPM, Ho et al. 2020): alpha = sqrt(alphas_cumprod), sigma = sqrt(1 - it).

    Args:
        alphas_cumprod: N values inside (0, 1), strictly falling: of the timesteps 0 (least noise) to N - 1. The last may be 0
            (a schedule with zero terminal signal).

    Timestep k is t = 1 - (k + 1) / N: the last one is t = 0, timestep 0 is t = 1 - 1/N, and t = 1 is the data itself. Between
    the timesteps half the log-SNR is a monotone cubic. A ``pfc.Field`` on this path gives its network the timestep
    N (1 - t) - 1, not less than 0, as it is; ``round_time`` or ``time_dtype`` asks for integers.
    """
    return AlphasCumprod(alphas_cumprod)


class _Cubic:
    """A cubic through points with continuous slopes: those of the parabola through a point and its neighbours, and for values
    that change in one direction no more than three times the lesser secant, which keeps the cubic monotone."""

    def __init__(self, x: Float, y: Float, monotone: bool = True) -> None:
        self.x, self.y = x, y
        h, secant = np.diff(x), np.diff(y) / np.diff(x)
        self.slope = np.full_like(y, secant[0])
        if len(x) > 2:
            self.slope[1:-1] = (h[1:] * secant[:-1] + h[:-1] * secant[1:]) / (h[1:] + h[:-1])
            self.slope[0] = ((2 * h[0] + h[1]) * secant[0] - h[0] * secant[1]) / (h[0] + h[1])
            self.slope[-1] = ((2 * h[-1] + h[-2]) * secant[-1] - h[-1] * secant[-2]) / (h[-1] + h[-2])
        if monotone:
            sign = np.sign(secant[0])
            least = 3 * np.minimum(np.append(np.inf, np.abs(secant)), np.append(np.abs(secant), np.inf))
            self.slope = sign * np.clip(sign * self.slope, 0.0, least)

        self.freeze()

    def freeze(self) -> None:
        """Takes the slopes as they are. Plans ask one time after another: plain numbers are ten times as fast as arrays."""
        self._knots = list(zip(self.x.tolist(), self.y.tolist(), self.slope.tolist(), strict=True))

    def at(self, i: int, x: float) -> tuple[float, float]:
        """Value and derivative at x inside the i-th interval."""
        (x0, y0, s0), (x1, y1, s1) = self._knots[i], self._knots[i + 1]
        h, rise = x1 - x0, y1 - y0
        u = (x - x0) / h
        m0, m1 = s0 * h, s1 * h
        # From the nearer end, so that both knots are met exactly.
        value = y0 + rise * u * u * (3 - 2 * u) if u < 0.5 else y1 - rise * (1 - u) * (1 - u) * (1 + 2 * u)
        value += u * (1 - u) * (m0 * (1 - u) - m1 * u)
        return value, (6 * u * (1 - u) * rise + m0 * (1 - u) * (1 - 3 * u) + m1 * u * (3 * u - 2)) / h


class Table(HostPath):
    """See :func:`table`. Equal to another of the same numbers."""

    name: ClassVar[str] = "table"

    def __init__(self, t: npt.ArrayLike, alpha: npt.ArrayLike, sigma: npt.ArrayLike) -> None:
        times, a, s = (_column(word, v) for word, v in (("t", t), ("alpha", alpha), ("sigma", sigma)))
        if times[0] != 0.0 or times[-1] != 1.0 or not (np.diff(times) > 0.0).all():
            raise ValueError(
                f"t must increase strictly from 0 to 1, got {times[0]} to {times[-1]}"
                + _where(~(np.diff(times) > 0.0), "t", times)
            )
        for word, values in (("alpha", a), ("sigma", s)):
            if values.shape != times.shape:
                raise ValueError(f"{word} has {values.size} values, t has {times.size}")
        snap_ends(times, a, s)
        for word, values in (("alpha", a), ("sigma", s)):
            if (values < 0.0).any():
                at = int(np.flatnonzero(values < 0.0)[0])
                raise ValueError(f"{word}[{at}] is {values[at]}, it must not be negative")
        if not a[-1] > 0.0:
            raise ValueError(f"alpha[-1] is {a[-1]}, it must be positive: t = 1 is the data")
        if not s[0] > 0.0:
            raise ValueError(f"sigma[0] is {s[0]}, it must be positive: t = 0 is the noise")
        self._times, self._alpha, self._sigma = times, a, s
        self._fit()

    def _fit(self) -> None:
        times, a, s = self._times, self._alpha, self._sigma
        with np.errstate(divide="ignore"):
            level = np.log(a) - np.log(s)
        if not (np.diff(level) > 0.0).all():
            raise ValueError(
                "alpha / sigma must rise strictly with t (t = 0 noise, t = 1 data)"
                + _where(~(np.diff(level) > 0.0), "alpha / sigma", a / np.where(s > 0.0, s, np.inf))
            )
        # The first and the last interval may have an infinite level at their outer end.
        self._low, self._high = bool(np.isinf(level[0])), bool(np.isinf(level[-1]))
        self._size = _Cubic(times, np.log(np.hypot(a, s)), monotone=False)
        lo, hi = int(self._low), len(times) - int(self._high)
        self._level = _Cubic(times[lo:hi], level[lo:hi])
        self._offset = lo
        self._from_noise = _Cubic(times, np.arctan2(a, s))
        self._from_data = _Cubic(times, np.arctan2(s, a))
        # Where the two kinds of interval meet they take one slope: the angle's, as far as it keeps lambda monotone.
        for present, knot, angle in (
            (self._low, lo, self._from_noise),
            (self._high, hi - 1, self._from_data),
        ):
            if not present:
                continue
            near = knot - lo
            secant = np.diff(self._level.y) / np.diff(self._level.x)
            product = a[knot] * s[knot] / (a[knot] ** 2 + s[knot] ** 2)
            slope = min(abs(angle.slope[knot]) / product, 3 * secant[0 if near == 0 else -1])
            self._level.slope[near] = slope
            angle.slope[knot] = np.copysign(slope * product, angle.slope[knot])
        for cubic in (self._level, self._from_noise, self._from_data):
            cubic.freeze()
        self._knots = list(zip(times.tolist(), a.tolist(), s.tolist(), strict=True))
        self._starts = times.tolist()

    @property
    def noise_scale(self) -> float:
        """sigma(0): a trajectory from t = 0 begins with sigma(0) x0."""
        return float(self._sigma[0])

    def coefficients(self, t: npt.ArrayLike) -> tuple[Float, Float, Float, Float]:
        """alpha, sigma and their time derivatives at t in [0, 1], float64, each of t's shape."""
        times = check_times(t)
        points = np.array([self._point(x) for x in times.reshape(-1).tolist()]).reshape(-1, 4)
        alpha, sigma, dalpha, dsigma = (c.reshape(times.shape) for c in points.T)
        return alpha, sigma, dalpha, dsigma

    def _values(self, t: float) -> tuple[float, float]:
        return self._point(t)[:2]

    def _point(self, t: float) -> tuple[float, float, float, float]:
        last = len(self._starts) - 2
        i = min(bisect_right(self._starts, t) - 1, last)
        log_size, dlog = self._size.at(i, t)
        size = math.exp(log_size)
        # alpha and sigma of size 1, and the slope of the angle between them.
        if self._low and i == 0:
            angle, slope = self._from_noise.at(i, t)
            data, noise = math.sin(angle), math.cos(angle)
        elif self._high and i == last:
            angle, slope = self._from_data.at(i, t)
            data, noise, slope = math.cos(angle), math.sin(angle), -slope
        else:
            level, slope = self._level.at(i - self._offset, t)
            data, noise = 1 / math.sqrt(1 + math.exp(-2 * level)), 1 / math.sqrt(1 + math.exp(2 * level))
            slope *= data * noise
        alpha, sigma = size * data, size * noise
        dalpha, dsigma = alpha * dlog + sigma * slope, sigma * dlog - alpha * slope
        for knot in (self._knots[i], self._knots[i + 1]):
            if t == knot[0]:  # the table's own values at its own times, to the last bit
                alpha, sigma = knot[1:]
        return alpha, sigma, dalpha, dsigma

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "t": self._times.tolist(), "alpha": self._alpha.tolist(), "sigma": self._sigma.tolist(),
        }  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self._alpha.tobytes()))

    def __repr__(self) -> str:
        return f"Table({len(self._times)} times)"


class AlphasCumprod(Table):
    """See :func:`from_alphas_cumprod`."""

    name: ClassVar[str] = "alphas_cumprod"

    def __init__(self, values: npt.ArrayLike) -> None:
        acp = _column("alphas_cumprod", values)
        if not (acp[0] < 1.0 and acp[-1] >= 0.0 and (np.diff(acp) < 0.0).all()):
            raise ValueError(
                f"alphas_cumprod must fall strictly inside (0, 1) (the last may be 0), got {acp[0]} to {acp[-1]}"
                + _where(~(np.diff(acp) < 0.0), "alphas_cumprod", acp)
            )
        self._values_given = acp
        count = len(acp)
        # Backwards, and the data itself at t = 1.
        self._times = np.append(np.array([self.time_of(k) for k in range(count - 1, -1, -1)]), 1.0)
        self._alpha = np.sqrt(np.append(acp[::-1], 1.0))
        self._sigma = np.sqrt(np.append(1.0 - acp[::-1], 0.0))
        self._fit()

    @property
    def timesteps(self) -> int:
        """N, the number of timesteps."""
        return len(self._values_given)

    def time_of(self, timestep: float) -> float:
        """The t of a timestep: (N - 1 - timestep) / N."""
        count = len(self._values_given)
        if not -1.0 <= timestep <= count - 1:
            raise ValueError(
                f"timestep is {timestep}, allowed are 0 to {count - 1}, and -1 for the data itself"
            )
        return float((count - 1 - timestep) / count)

    def times_of(self, timesteps: npt.ArrayLike) -> list[float]:
        """Times of falling timesteps, a grid for ``pfc.plan``; -1 is the data itself, t = 1."""
        return [self.time_of(float(k)) for k in np.asarray(timesteps).reshape(-1)]

    def network_times(self, t: Tensor) -> Tensor:
        """N (1 - t) - 1, not less than 0: networks know no timestep below it. At the time of a timestep exactly that."""
        count = len(self._values_given)
        timestep = torch.clamp(count * (1.0 - t) - 1.0, min=0.0)
        # t itself is rounded: what is an integer but for that is one.
        whole = timestep.round()
        return torch.where((timestep - whole).abs() <= 1e-15 * count * count, whole, timestep)

    @property
    def noise_scale(self) -> float:
        """1, as these models are sampled: alpha^2 + sigma^2 is 1 at t = 0, where alpha is nearly 0."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "values": self._values_given.tolist()}

    def __repr__(self) -> str:
        return f"AlphasCumprod({len(self._values_given)} timesteps)"


def _column(word: str, values: npt.ArrayLike) -> Float:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{word} must be one-dimensional, got shape {list(array.shape)}")
    if array.size < 4:
        raise ValueError(f"{word} needs at least 4 values, got {array.size}")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{word}[{at}] is {array[at]}, it must be finite")
    return array


def _where(wrong: npt.NDArray[np.bool_], word: str, values: Float) -> str:
    if not wrong.any():
        return ""
    at = int(np.flatnonzero(wrong)[0])
    return f"; {word}[{at}] is {values[at]}, {word}[{at + 1}] is {values[at + 1]}"
