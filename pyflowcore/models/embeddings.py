"""What a network is told beside the state: the time as sinusoids, and where a token lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, width: int, *, scale: float = 1000.0, period: float = 10000.0) -> Tensor:
    """Sinusoids of ``scale * t``, cosines first: t [B] -> [B, width], float32 whatever t is (width must be even).

    float32 because a bfloat16 phase is wrong by whole turns at scale 1000. Frequencies are geometric, from 1 to one
    step short of 1 / period (Vaswani et al. 2017, section 3.5).
    """
    half = width // 2
    frequencies = torch.exp(
        -math.log(period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    phase = (scale * t.to(torch.float32))[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed positions of a side x side grid of tokens: [side * side, width] float32, half for rows, half for columns.

    width must be a multiple of 4.
    """
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    phase = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    axis = torch.cat([phase.sin(), phase.cos()], dim=-1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)
