"""A residual network over vectors: tables, simulation-based inference, policies."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import timestep_embedding
from .labels import labels_or_null


class PlainBlock(nn.Module):
    """h + linear2(dropout(silu(linear1(h)))), [B, width] -> [B, width]."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear2(self.dropout(F.silu(self.linear1(h))))


class ModulatedBlock(nn.Module):
    """h + gate * linear2(dropout(silu(linear1(norm(h) * (1 + scale) + shift)))), all three from c [B, width].

    The three start at zero ("adaLN-zero", Peebles & Xie 2023), so that a fresh block is the identity.
    """

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.linear1 = nn.Linear(width, inner)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(inner, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(c)).chunk(3, dim=-1)
        inner = self.linear1(torch.addcmul(shift, self.norm(h), 1 + scale))
        return torch.addcmul(h, gate, self.linear2(self.dropout(F.silu(inner))))


class ResMLP(nn.Module):
    """Vectors, a time and optional conditions through residual blocks: ``forward(x, t, y=None, c=None)``.

    With ``modulated``, time, class and condition are embedded, added up, and steer every block through adaptive layer norms
    (the network that Li et al. 2024, "Autoregressive Image Generation without Vector Quantization", use for vectors).
    Without, they enter the first layer beside x, and the blocks are plain: the residual network of Gorishniy et al. 2021
    without its norms, which ``pfc.fuse`` takes. The last layer starts at zero, so a fresh network answers zero.

    Args:
        dim: size of x.
        hidden: width of the blocks.
        depth: number of blocks.
        ratio: inner width of a block over ``hidden``.
        num_classes: 0 for none; else labels run from 0 to ``num_classes - 1`` and index ``num_classes`` is the learned
            null class ("no label").
        cond_dim: size of the condition vector c; 0 for none.
        time_dim: number of sinusoids of t, even.
        dropout: in training, of the inner layer of a block.
        modulated: see above.

    Raises:
        ValueError: if a size is out of range, or if x, t, y or c do not fit what was built.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 256,
        depth: int = 4,
        ratio: float = 1.0,
        num_classes: int = 0,
        cond_dim: int = 0,
        time_dim: int = 64,
        dropout: float = 0.0,
        modulated: bool = True,
    ) -> None:
        super().__init__()
        if min(dim, hidden, depth) < 1 or min(num_classes, cond_dim) < 0:
            raise ValueError(
                "dim, hidden and depth must be at least 1, num_classes and cond_dim at least 0; got "
                f"{dim}, {hidden}, {depth}, {num_classes}, {cond_dim}"
            )
        if time_dim < 2 or time_dim % 2:
            raise ValueError(f"time_dim must be even and at least 2; got {time_dim}")
        if not (math.isfinite(ratio) and int(ratio * hidden) >= 1):
            raise ValueError(f"ratio must give an inner width of at least 1; got {ratio} of hidden={hidden}")
        if not (math.isfinite(dropout) and 0 <= dropout < 1):
            raise ValueError(f"dropout must be within [0, 1); got {dropout}")
        self.config: dict[str, int | float | bool] = {
            "dim": dim,
            "hidden": hidden,
            "depth": depth,
            "ratio": ratio,
            "num_classes": num_classes,
            "cond_dim": cond_dim,
            "time_dim": time_dim,
            "dropout": dropout,
            "modulated": modulated,
        }
        self.shape = (dim,)
        self.num_classes, self.cond_dim, self.time_dim = num_classes, cond_dim, time_dim
        self.modulated = modulated
        inner = int(ratio * hidden)
        self.embed_class = nn.Embedding(num_classes + 1, hidden) if num_classes else None
        self.embed_time: nn.Module | None = None
        self.embed_cond: nn.Linear | None = None
        self.modulation: nn.Linear | None = None
        if modulated:
            self.stem = nn.Linear(dim, hidden)
            self.embed_time = nn.Sequential(nn.Linear(time_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            self.embed_cond = nn.Linear(cond_dim, hidden) if cond_dim else None
            self.blocks = nn.ModuleList(ModulatedBlock(hidden, inner, dropout) for _ in range(depth))
            self.norm: nn.Module = nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)
            self.modulation = nn.Linear(hidden, 2 * hidden)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        else:
            self.stem = nn.Linear(dim + time_dim + cond_dim + (hidden if num_classes else 0), hidden)
            self.blocks = nn.ModuleList(PlainBlock(hidden, inner, dropout) for _ in range(depth))
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def null_class(self) -> int | None:
        """The index that stands for "no label"; None for a network without classes."""
        return self.num_classes or None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """x [B, dim], t [B] in [0, 1], y [B] integer labels (None: the null class), c [B, cond_dim] -> [B, dim]."""
        if x.dim() != 2 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be [B, {self.shape[0]}]; got {list(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must hold one time a sample, [{x.shape[0]}]; got {list(t.shape)}")
        if self.cond_dim and (c is None or c.shape != (x.shape[0], self.cond_dim)):
            raise ValueError(
                f"c must be [{x.shape[0]}, {self.cond_dim}]; got {'None' if c is None else list(c.shape)}"
            )
        if not self.cond_dim and c is not None:
            raise ValueError("c was given to a ResMLP without a condition vector: build it with cond_dim=")
        phases = timestep_embedding(t, self.time_dim).to(x.dtype)
        labels = labels_or_null(y, x, self.num_classes, "ResMLP")
        of_class = None if labels is None or self.embed_class is None else self.embed_class(labels)
        vector = None if c is None else c.to(x.dtype)
        return (
            self._steered(x, phases, of_class, vector)
            if self.modulated
            else self._joined(x, phases, of_class, vector)
        )

    def _steered(self, x: Tensor, phases: Tensor, of_class: Tensor | None, vector: Tensor | None) -> Tensor:
        """The network with adaptive layer norms."""
        assert self.embed_time is not None and self.modulation is not None
        steer = self.embed_time(phases)
        if of_class is not None:
            steer = steer + of_class
        if vector is not None and self.embed_cond is not None:
            steer = steer + self.embed_cond(vector)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, steer)
        shift, scale = self.modulation(F.silu(steer)).chunk(2, dim=-1)
        return self.out(torch.addcmul(shift, self.norm(h), 1 + scale))

    def _joined(self, x: Tensor, phases: Tensor, of_class: Tensor | None, vector: Tensor | None) -> Tensor:
        """The network whose inputs come side by side."""
        h = self.stem(torch.cat([part for part in (x, phases, of_class, vector) if part is not None], dim=-1))
        for block in self.blocks:
            h = block(h)
        return self.out(F.silu(h))
