"""Classifier-free guidance: what a sampler makes of a conditional and an unconditional evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CFG", "Scale"]

Scale = float | Sequence[float] | Tensor | Callable[[float], "float | Sequence[float] | Tensor"]


@dataclass(frozen=True)
class CFG:
    """u + w (c - u) (Ho & Salimans 2022), inside an interval of times (Kynkaanniemi et al. 2024).

    Args:
        scale: w; a finite number, one per sample (a sequence or tensor [B]), or a function of t that gives either.
        interval: (lo, hi) in t (0 noise, 1 data), closed on both sides; outside it w = 1. Default: everywhere.

    Where w = 1 for the whole batch the unconditional branch is not evaluated.
    """

    scale: Scale
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.scale):
            as_scale(self.scale, None)
        if self.interval is None:
            return
        if len(self.interval) != 2:
            raise ValueError(f"interval must be (lo, hi), got {self.interval!r}")
        lo, hi = self.interval
        if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
            raise ValueError(f"interval must be finite with lo <= hi, got {self.interval!r}")

    def rows(
        self, times: Sequence[float | None], batch: int, override: Scale | None = None
    ) -> tuple[list[int], Tensor | float]:
        """For each evaluation's time (None where a row evaluates nothing) the number of branches that it needs, and the
        scales: one number for all, or float64 [rows, 1 or batch]. A row with one branch does not read its scale."""
        scale = self.scale if override is None else override
        if isinstance(scale, (int, float)):
            number = check_number(scale)
            return [2 if t is not None and number != 1.0 and self._inside(t) else 1 for t in times], number
        if callable(scale):
            lines = [None if t is None or not self._inside(t) else as_scale(scale(t), batch) for t in times]
        else:
            # One look at a constant scale serves every row.
            once = as_scale(scale, batch)
            line = None if _is_one(once) else once
            lines = [None if t is None or not self._inside(t) else line for t in times]
            return [1 if line is None else 2 for line in lines], once.expand(len(times), -1)
        lines = [None if line is None or _is_one(line) else line for line in lines]
        wanted = [line for line in lines if line is not None]
        width = max((len(line) for line in wanted), default=1)
        one = wanted[0].new_ones(width) if wanted else torch.ones(width, dtype=torch.float64)
        values = torch.stack([one if line is None else line.expand(width) for line in lines])
        return [1 if line is None else 2 for line in lines], values

    def _inside(self, t: float) -> bool:
        # A grid point may miss the edge that it stands for by a rounding: 7 * 0.1 is above 0.7.
        return self.interval is None or self.interval[0] - 1e-12 <= t <= self.interval[1] + 1e-12


def check_number(scale: float) -> float:
    """A guidance scale that is a number."""
    if isinstance(scale, bool):
        raise TypeError(f"guidance scale must be a number, one per sample, or a function of t, got {scale!r}")
    if not math.isfinite(scale):
        raise ValueError(f"guidance scale must be finite, got {scale!r}")
    return float(scale)


def _is_one(scale: Tensor) -> bool:
    """Whether the unconditional branch is not needed: not for a scale whose gradient is wanted, nor one that is not looked
    at."""
    return not scale.requires_grad and seen(scale) and bool((scale == 1.0).all())


def seen(tensor: Tensor) -> bool:
    """Whether a tensor's values may be looked at: not on a device, where that stops the host, nor in a compiled function."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def as_scale(scale: object, batch: int | None) -> Tensor:
    """A guidance scale as a float64 tensor [1] or [batch]; keeps device and gradient of a tensor."""
    if isinstance(scale, (int, float)):
        scale = check_number(scale)
    try:
        values = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"guidance scale must be a number, one per sample, or a function of t, got {scale!r}"
        ) from None
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"guidance scale must be real, got {values.dtype}")
    values = values.double()
    if values.dim() > 1 or (values.dim() == 1 and batch is not None and values.shape[0] not in (1, batch)):
        raise ValueError(
            f"guidance scale must be a number or have shape [{batch}], got shape {list(values.shape)}"
        )
    if seen(values) and not bool(torch.isfinite(values.detach()).all()):
        raise ValueError(f"guidance scale must be finite, got {scale!r}")
    return values.reshape(-1)
