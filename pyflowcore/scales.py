"""Guidance scales: a number, one per sample, or a function of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Scale", "as_scale", "check_number", "is_all", "seen"]

Scale = float | Sequence[float] | Tensor | Callable[[float], "float | Sequence[float] | Tensor"]


def check_number(scale: float, name: str = "guidance scale") -> float:
    """A guidance scale that is a number."""
    if isinstance(scale, bool):
        raise TypeError(f"{name} must be a number, one per sample, or a function of t, got {scale!r}")
    if not math.isfinite(scale):
        raise ValueError(f"{name} must be finite, got {scale!r}")
    return float(scale)


def seen(tensor: Tensor) -> bool:
    """Whether a tensor's values may be looked at: not on a device, where that stops the host, nor in a compiled function."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def is_all(scale: Tensor, value: float) -> bool:
    """Whether a branch is not needed: not for a scale whose gradient is wanted, nor one that is not looked at."""
    return not scale.requires_grad and seen(scale) and bool((scale == value).all())


def as_scale(scale: object, batch: int | None, name: str = "guidance scale") -> Tensor:
    """A guidance scale, or a weight, as a float64 tensor [1] or [batch]; keeps device and gradient of a tensor."""
    if isinstance(scale, (int, float)):
        scale = check_number(scale, name)
    try:
        values = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be a number, one per sample, or a function of t, got {scale!r}"
        ) from None
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be real, got {values.dtype}")
    values = values.double()
    if values.dim() > 1 or (values.dim() == 1 and batch is not None and values.shape[0] not in (1, batch)):
        size = "B" if batch is None else batch
        raise ValueError(f"{name} must be a number or have shape [{size}], got shape {list(values.shape)}")
    if seen(values) and not bool(torch.isfinite(values.detach()).all()):
        raise ValueError(f"{name} must be finite, got {scale!r}")
    return values.reshape(-1)
