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

    def at(self, t: float, batch: int, override: Scale | None = None) -> Tensor | None:
        """The scales at time t, float64 [1] or [batch]; None where the unconditional branch is not needed."""
        if self.interval is not None and not self.interval[0] <= t <= self.interval[1]:
            return None
        scale = self.scale if override is None else override
        values = as_scale(scale(t) if callable(scale) else scale, batch)
        # On a device, looking at the values would stop the host: the branch is evaluated then.
        if values.device.type == "cpu" and bool((values == 1.0).all()):
            return None
        return values


def as_scale(scale: object, batch: int | None) -> Tensor:
    """A guidance scale as a float64 tensor [1] or [batch]; keeps device and gradient of a tensor."""
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
    if values.device.type == "cpu" and not bool(torch.isfinite(values.detach()).all()):
        raise ValueError(f"guidance scale must be finite, got {scale!r}")
    return values.reshape(-1)
