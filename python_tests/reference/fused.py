"""A small fused field, and the same field seen as a callable."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

import pyflowcore as pfc


class Small(nn.Module):
    """Three features of time, conditions ``c``, residual hidden layers."""

    def __init__(self, dim, conditions=0, width=10, depth=3, dtype=torch.float64, seed=0):
        super().__init__()
        self.first = nn.Linear(3 + conditions + dim, width, dtype=dtype)
        self.hidden = nn.ModuleList(nn.Linear(width, width, dtype=dtype) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim, dtype=dtype)
        make = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.3
            parameter.data = scale * torch.randn(parameter.shape, generator=make, dtype=dtype)

    def forward(self, x, t, c=None):
        t = t[:, None]
        given = [] if c is None else [c]
        h = torch.cat([t, torch.sin(2 * math.pi * t), torch.cos(3 * t + 0.25), *given, x], dim=1)
        h = F.silu(self.first(h))
        for layer in self.hidden:
            h = h + F.silu(layer(h))
        return self.last(h)


def fresh(dim=3, conditions=0, dtype=torch.float64, width=10, depth=3, **facts) -> pfc.FusedField:
    """The field fused; its condition is ``c`` [B, conditions]."""
    inputs = ("x", "t", "c") if conditions else ("x", "t")
    module = Small(dim, conditions, width, depth, dtype)
    return pfc.fuse(module, inputs, sizes={"c": conditions} if conditions else None, **facts)


# Made once where nobody writes it.
small = functools.cache(fresh)


def hidden(field: pfc.FusedField) -> pfc.Field:
    """The same field, seen as a callable: for the loop."""
    facts = {name: getattr(field, name) for name in (
        "prediction", "path", "sign", "time", "time_shape", "dtype", "round_time", "time_dtype")}  # fmt: skip
    return pfc.Field(lambda x, t, **cond: field.net(x, t, **cond), **facts)
