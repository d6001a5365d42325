"""Guidance: what a sampler makes of conditional and unconditional evaluations. docs/guidance.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import conditions
from .field import Field
from .scales import Scale, as_scale, check_number, is_all

__all__ = ["APG", "CFG", "Autoguidance", "CFGZero"]


@dataclass(frozen=True, repr=False, eq=False)
class CFG:
    """u + w (c - u) (Ho & Salimans 2022), inside an interval of times (Kynkaanniemi et al. 2024).

    Args:
        scale: w; a finite number, one per sample (a sequence or tensor [B]), or a function of t that gives either.
        interval: (lo, hi) in t (0 noise, 1 data), closed on both sides; outside it w = 1. Default: everywhere.
        weights: for several conditions, ``cond=[...]``: a scale v_j for each, given as ``scale`` is; then u + sum_j w v_j
            (c_j - u). Default: 1 for each. Outside the interval the first condition stands alone.

    Where w = 1 for the whole batch (w v_1 = 1 and the other w v_j = 0) the first condition alone is evaluated. There, and for
    a sample whose w is 1, nothing below changes anything.

    What goes beyond it is added by methods that return a new object: :meth:`against`, :meth:`zero_star`, :meth:`projected`,
    :meth:`rescaled`. Whatever the order of the calls, they act in this one.
    """

    scale: Scale
    interval: tuple[float, float] | None = None
    weights: Sequence[Scale] | None = field(default=None, kw_only=True)
    weak: Field | None = field(default=None, kw_only=True)
    star: bool = field(default=False, kw_only=True)
    zero_until: float = field(default=0.0, kw_only=True)
    eta: float = field(default=1.0, kw_only=True)
    norm: float | None = field(default=None, kw_only=True)
    momentum: float = field(default=0.0, kw_only=True)
    phi: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.scale):
            as_scale(self.scale, None)
        if self.interval is not None:
            try:
                lo, hi = self.interval
                right = math.isfinite(lo) and math.isfinite(hi) and lo <= hi
            except (TypeError, ValueError):
                raise TypeError(f"interval must be (lo, hi), two numbers, got {self.interval!r}") from None
            if not right:
                raise ValueError(f"interval must be finite with lo <= hi, got {self.interval!r}")
        if self.weights is not None:
            given: object = self.weights  # whatever the hint says
            if not isinstance(given, Sequence) or isinstance(given, str) or not given:
                raise TypeError(
                    f"weights must be a sequence with a scale for each condition, got {self.weights!r}"
                )
            object.__setattr__(self, "weights", tuple(self.weights))
            for j, weight in enumerate(self.weights):
                if not callable(weight):
                    as_scale(weight, None, f"weights[{j}]")
        if self.weak is not None and not isinstance(self.weak, Field):
            raise TypeError(f"weak must be a pfc.Field, got {type(self.weak).__name__}")
        for name in ("zero_until", "eta", "momentum", "phi"):
            _number(name, getattr(self, name))
        if self.zero_until < 0.0:
            raise ValueError(f"zero_until must not be negative, got {self.zero_until!r}")
        if self.norm is not None and _number("norm", self.norm) <= 0.0:
            raise ValueError(f"norm must be positive, or None for no threshold, got {self.norm!r}")
        if not 0.0 <= self.phi <= 1.0:
            raise ValueError(f"phi must be in [0, 1], got {self.phi!r}")
        if self.star and self.momentum != 0.0:
            raise ValueError(
                "momentum: CFG-Zero* scales u by a number that is known only when the difference has been added to the "
                "momentum; use one of the two"
            )

    def __repr__(self) -> str:
        said = [f"{f.name}={v!r}" for f in fields(self)[1:] if (v := getattr(self, f.name)) != f.default]
        return f"CFG({', '.join([repr(self.scale), *said])})"

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; scales and weights that are functions are compared by identity."""
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        # Scales may be lists or tensors, which have no hash of their values.
        return hash((self.star, self.zero_until, self.eta, self.norm, self.momentum, self.phi))

    def against(self, weak: Field) -> CFG:
        """u from a second, weaker field (Karras et al. 2024): see :func:`Autoguidance`."""
        return replace(self, weak=weak)

    def zero_star(self, *, zero_until: float = 0.0) -> CFG:
        """CFG-Zero*: see :func:`CFGZero`."""
        return replace(self, star=True, zero_until=zero_until)

    def projected(self, *, eta: float = 0.0, norm: float | None = None, momentum: float = 0.0) -> CFG:
        """Adaptive projected guidance: see :func:`APG`."""
        return replace(self, eta=eta, norm=norm, momentum=momentum)

    def rescaled(self, phi: float) -> CFG:
        """The guided prediction g times 1 + phi (std(c) / std(g) - 1), per sample over all its elements (Lin et al. 2023,
        section 3.4); phi in [0, 1]. A g that is constant but for rounding stays as it is."""
        return replace(self, phi=phi)

    @property
    def by_sample(self) -> bool:
        """Whether the weights of the branches depend on the sample's own values."""
        return (
            self.star or self.eta != 1.0 or self.norm is not None or self.momentum != 0.0 or self.phi != 0.0
        )

    def rows(
        self,
        times: Sequence[float | None],
        batch: int | None,
        override: Scale | None = None,
        conditions: int = 1,
    ) -> tuple[list[int], Tensor | float]:
        """For each evaluation's time (None where a row evaluates nothing) the number of branches that it needs, 0 where its
        velocity is zero, and the scales: one number for all, or float64 [rows, 1 or batch], [rows, conditions, 1 or batch] for
        several conditions. A row with one branch does not read its scale. ``batch`` None: any."""
        scale = self.scale if override is None else override
        one = conditions == 1 and self.weights is None
        counts, scales = (
            self._one(times, batch, scale) if one else self._several(times, batch, scale, conditions)
        )
        if self.zero_until > 0.0:
            zero = self.zero_until - 1e-12
            counts = [0 if t is not None and t < zero else n for t, n in zip(times, counts, strict=True)]
        return counts, scales

    def _one(
        self, times: Sequence[float | None], batch: int | None, scale: Scale
    ) -> tuple[list[int], Tensor | float]:
        if isinstance(scale, (int, float)):
            number = check_number(scale)
            return [2 if t is not None and number != 1.0 and self._inside(t) else 1 for t in times], number
        if callable(scale):
            lines = [None if t is None or not self._inside(t) else as_scale(scale(t), batch) for t in times]
        else:
            # One look at a constant scale serves every row.
            once = as_scale(scale, batch)
            line = None if is_all(once, 1.0) else once
            lines = [None if t is None or not self._inside(t) else line for t in times]
            return [1 if line is None else 2 for line in lines], once.expand(len(times), -1)
        lines = [None if line is None or is_all(line, 1.0) else line for line in lines]
        wanted = [line for line in lines if line is not None]
        width = max([1, *(len(line) for line in wanted)])
        one = wanted[0].new_ones(width) if wanted else torch.ones(width, dtype=torch.float64)
        values = torch.stack([one if line is None else line.expand(width) for line in lines])
        return [1 if line is None else 2 for line in lines], values

    def _several(
        self, times: Sequence[float | None], batch: int | None, scale: Scale, conditions: int
    ) -> tuple[list[int], Tensor]:
        weights = (1.0,) * conditions if self.weights is None else tuple(self.weights)
        if len(weights) != conditions:
            raise ValueError(f"weights has {len(weights)} entries, there are {conditions} conditions")

        def at(t: float, value: Scale, name: str = "guidance scale") -> Tensor:
            return as_scale(value(t) if callable(value) else value, batch, name)

        lines: list[Tensor | None] = []
        for t in times:
            if t is None or not self._inside(t):
                lines.append(None)
                continue
            products = torch.broadcast_tensors(
                *(at(t, scale) * at(t, weight, f"weights[{j}]") for j, weight in enumerate(weights))
            )
            alone = is_all(products[0], 1.0) and all(is_all(other, 0.0) for other in products[1:])
            lines.append(None if alone else torch.stack(products))
        wanted = [line for line in lines if line is not None]
        width = max([1, *(line.shape[1] for line in wanted)])
        like = wanted[0] if wanted else torch.empty(0, dtype=torch.float64)
        one = like.new_ones(conditions, width)
        values = torch.stack([one if line is None else line.expand(-1, width) for line in lines])
        return [1 if line is None else conditions + 1 for line in lines], values

    def _inside(self, t: float) -> bool:
        # A grid point may miss the edge that it stands for by a rounding: 7 * 0.1 is above 0.7.
        return self.interval is None or self.interval[0] - 1e-12 <= t <= self.interval[1] + 1e-12


def CFGZero(
    scale: Scale, interval: tuple[float, float] | None = None, *, zero_until: float = 0.0, **options: Any
) -> CFG:
    """CFG-Zero* (Fan et al. 2025): s u + w (c - s u) with s = <c, u> / <u, u> per sample, s = 1 where u is zero.

    Args:
        scale, interval, options: those of :class:`CFG`.
        zero_until: evaluations at t < zero_until are not made; the velocity is taken to be zero there (the paper's first 4 %
            of the steps). For fields that predict the velocity. Default: none.
    """
    return CFG(scale, interval, **options).zero_star(zero_until=zero_until)


def APG(
    scale: Scale, interval: tuple[float, float] | None = None, *, eta: float = 0.0, norm: float | None = None,
    momentum: float = 0.0, **options: Any,
) -> CFG:  # fmt: skip
    """Adaptive projected guidance (Sadat et al. 2024), in data space: c + (w - 1) (d_orthogonal + eta d_parallel) with
    d = c - u, its parts relative to c, all three as predicted data.

    Args:
        scale, interval, options: those of :class:`CFG`.
        eta: weight of the part of d parallel to c; 1 leaves d as it is.
        norm: r: d is first made shorter where its norm, of a sample's predicted data, exceeds r. Default: no threshold.
        momentum: beta: before that, d <- d + beta d of the evaluation before (the paper takes it negative, -0.5 for
            instance). Rows without an unconditional branch leave it as it is. For one condition.
    """
    return CFG(scale, interval, **options).projected(eta=eta, norm=norm, momentum=momentum)


def Autoguidance(
    weak: Field, scale: Scale, interval: tuple[float, float] | None = None, **options: Any
) -> CFG:
    """u from a second, weaker field (Karras et al. 2024), of the same prediction and path; with the same condition, or with
    ``uncond`` where that is given. The weak field is evaluated by a call of its own, with its own times, dtype and sign.

    Args:
        weak: a ``pfc.Field``.
        scale, interval, options: those of :class:`CFG`.
    """
    return CFG(scale, interval, **options).against(weak)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        alike = isinstance(one, Tensor) and isinstance(other, Tensor)
        return one is other or (alike and one.device == other.device and torch.equal(one, other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return conditions.equal(one, other)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)
