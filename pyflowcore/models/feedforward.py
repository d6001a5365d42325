"""The two-layer networks between attentions, by name."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

FeedForward = Literal["gelu", "swiglu"]


class SwiGLU(nn.Module):
    """silu(a) * b between two linear layers, a and b the halves of the first one's answer (Shazeer 2020).

    [..., width] -> [..., width]; a comes first in ``inner``'s rows.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


def make_feedforward(kind: FeedForward, width: int, ratio: float) -> nn.Module:
    """ "gelu": width -> ratio * width -> GELU (its tanh form) -> width. "swiglu": ``SwiGLU`` of two thirds of that hidden
    width, rounded down, which makes three matrices weigh as much as two.

    Raises:
        ValueError: for an unknown kind, or a ratio that leaves no hidden width.
    """
    hidden = int(width * ratio)
    if kind not in ("gelu", "swiglu"):
        raise ValueError(f'mlp must be "gelu" or "swiglu"; got {kind!r}')
    if kind == "swiglu":
        hidden = 2 * hidden // 3
    if hidden < 1:
        raise ValueError(f"mlp_ratio must leave a hidden width; got mlp_ratio={ratio} for width={width}")
    if kind == "swiglu":
        return SwiGLU(width, hidden)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
