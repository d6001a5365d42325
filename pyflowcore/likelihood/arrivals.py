"""Samples that have a density, and those that have none: how they ended, and one warning that counts them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .._library import PyflowcoreWarning
from ..solving import Status

__all__ = ["checked", "whole"]


def whole(mask: Tensor) -> Tensor:
    """[B]: the samples of which every element is true."""
    return mask.flatten(1).all(1) if mask.dim() > 1 else mask


def checked(values: Tensor, end: Tensor, change: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    """(values [B, estimates] with nan where there is no density, status with NON_FINITE where that was not known).

    Args:
        end: [B, ...] the state at the last time.
        change: [B, estimates] the integral of the divergence.
    """
    finite = whole(end.detach().isfinite())
    finite &= change.detach().isfinite().all(1) & ~values.detach().isnan().any(1)
    status = torch.where((status == Status.SUCCESS) & ~finite, int(Status.NON_FINITE), status)
    fine = status == Status.SUCCESS
    if not bool(fine.all()):
        _warn(status[~fine], len(status))
        values = torch.where(fine[:, None], values, torch.nan)
    return values, status


def _warn(failed: Tensor, batch: int) -> None:
    numbers, counts = failed.unique(return_counts=True)
    reasons = ", ".join(
        f"{count} {Status(number).name}"
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    )
    warnings.warn(
        f"{len(failed)} of {batch} samples have no density ({reasons}); their value is nan",
        PyflowcoreWarning,
        stacklevel=4,
    )
