"""Rotary positions along one or more axes: queries and keys turn by angles that grow with their place.

After Su et al., "RoFormer" (2021), section 3.2; along several axes each axis turns its own share of a head ("axial"), as
vision transformers do (Fang et al., "EVA-02", 2023). What attention sees of two turned vectors depends on the difference
of their positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Pairs = Literal["adjacent", "halves"]


def grid_positions(*sides: int, device: torch.device | str | None = None) -> Tensor:
    """Whole-number positions of a grid, the last axis fastest: [product of sides, len(sides)] float64.

    Made on ``device``, so that it may also be under capture of a CUDA graph, where nothing comes from the host.
    """
    axes = [torch.arange(side, dtype=torch.float64, device=device) for side in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(sides))


def rotary_table(
    positions: Tensor,
    head_dim: int,
    *,
    split: Sequence[int] | None = None,
    period: float = 10000.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's angles, ``[N, head_dim / 2]`` each, for ``apply_rotary``.

    An axis with d dimensions of the head has d / 2 angles, its position times period^(-2k/d) for k = 0 .. d/2 - 1. The
    angles are computed in float64, so that far positions keep theirs.

    Args:
        positions: [N, axes] real numbers (``grid_positions``; text beside images gets constant ones), or [N] for one axis.
        head_dim: dimensions of a head, even.
        split: how many dimensions of the head each axis turns, in order, each even and at least 2, their sum at most
            head_dim: what is left over is not turned. None: equal shares of the whole.
        period: the slowest angle's period over 2π, nearly.
        dtype: of the answer.

    Raises:
        ValueError: if positions has another shape, or if the shares do not fit the head.
    """
    if positions.dim() == 1:
        positions = positions[:, None]
    if positions.dim() != 2 or positions.shape[1] < 1:
        raise ValueError(f"positions must be [N, axes] or [N]; got {list(positions.shape)}")
    axes = positions.shape[1]
    if split is None:
        if head_dim < 2 * axes or head_dim % (2 * axes):
            raise ValueError(
                f"head_dim must be a multiple of 2 * axes, here {2 * axes}, or come with split; got {head_dim}"
            )
        split = [head_dim // axes] * axes
    if len(split) != axes or any(share < 2 or share % 2 for share in split) or sum(split) > head_dim:
        raise ValueError(
            f"split must hold an even number of at least 2 for each of {axes} axes, in all at most head_dim={head_dim}; "
            f"got {list(split)}"
        )
    if head_dim % 2:
        raise ValueError(f"head_dim must be even; got {head_dim}")
    angles = []
    for position, share in zip(positions.to(torch.float64).unbind(1), split, strict=True):
        exponents = torch.arange(0, share, 2, dtype=torch.float64, device=positions.device) / share
        angles.append(position[:, None] * period**-exponents)
    still = (head_dim - sum(split)) // 2
    angles.append(positions.new_zeros((positions.shape[0], still), dtype=torch.float64))
    angle = torch.cat(angles, dim=1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def apply_rotary(q: Tensor, cos: Tensor, sin: Tensor, *, pairs: Pairs = "adjacent") -> Tensor:
    """q [..., N, head_dim], queries or keys, turned by the table's angles: [..., N, head_dim], of q's dtype.

    Args:
        q: in any floating dtype; the products are taken in the wider of q's and the table's.
        cos, sin: ``rotary_table``'s, [N, head_dim / 2], or anything that broadcasts to [..., N, head_dim / 2].
        pairs: which two dimensions turn together by angle k: "adjacent" 2k and 2k + 1 (RoFormer, LightningDiT, FLUX);
            "halves" k and k + head_dim / 2 (GPT-NeoX, Llama, Gemma). Weights trained with one do not fit the other.

    Raises:
        ValueError: for unknown pairs, or a table that does not fit.
    """
    if pairs not in ("adjacent", "halves"):
        raise ValueError(f'pairs must be "adjacent" or "halves"; got {pairs!r}')
    if q.shape[-1] != 2 * cos.shape[-1] or cos.shape != sin.shape or cos.shape[-2] != q.shape[-2]:
        raise ValueError(
            f"cos and sin must be [N, head_dim / 2] for q [..., N, head_dim]; got {list(cos.shape)}, {list(sin.shape)} "
            f"and {list(q.shape)}"
        )
    if pairs == "adjacent":
        first, second = q.unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first, second = q.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    if pairs == "adjacent":
        return torch.stack(turned, dim=-1).flatten(-2).to(q.dtype)
    return torch.cat(turned, dim=-1).to(q.dtype)
