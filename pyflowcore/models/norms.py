"""Norms over the last axis, by name, and their adaptive form."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer", "rms"]


def make_norm(kind: Norm, width: int, *, affine: bool, eps: float = 1e-6) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over vectors of ``width``: "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019, no mean, no shift).

    Both compute in float32 for half-precision input. ``affine`` adds a learned scale that starts at one, and for "layer" a
    learned shift that starts at zero.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "layer":
        return nn.LayerNorm(width, eps=eps, elementwise_affine=affine)
    if kind == "rms":
        return nn.RMSNorm(width, eps=eps, elementwise_affine=affine)
    raise ValueError(f'norm must be "layer" or "rms"; got {kind!r}')


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, N, width] scaled by 1 + scale and moved by shift, both [B, width]."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])
