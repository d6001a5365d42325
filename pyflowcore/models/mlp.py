"""A multilayer perceptron over vectors, the smallest useful field."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .embeddings import timestep_embedding


class MLP(nn.Module):
    """Vectors, a time and optional conditions through SiLU layers: ``forward(x, t, y=None, c=None)``.

    The input of the first layer is x, sinusoids of t, an embedding of the class y and the vector c, side by side. The
    last layer starts at zero, so a fresh network answers zero.

    Args:
        dim: size of x.
        hidden: width of the hidden layers.
        depth: number of hidden layers, at least 1.
        num_classes: 0 for none; else labels run from 0 to ``num_classes - 1`` and index ``num_classes`` is the learned
            null class ("no label").
        cond_dim: size of the condition vector c; 0 for none.
        time_dim: number of sinusoids of t, even.

    Raises:
        ValueError: if a size is out of range, or if x, y or c do not fit what was built.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        depth: int = 3,
        num_classes: int = 0,
        cond_dim: int = 0,
        time_dim: int = 32,
    ) -> None:
        super().__init__()
        if min(dim, hidden, depth) < 1 or min(num_classes, cond_dim) < 0:
            raise ValueError(
                "dim, hidden and depth must be at least 1, num_classes and cond_dim at least 0; got "
                f"{dim}, {hidden}, {depth}, {num_classes}, {cond_dim}"
            )
        if time_dim < 2 or time_dim % 2:
            raise ValueError(f"time_dim must be even and at least 2; got {time_dim}")
        self.config: dict[str, int | float] = {
            "dim": dim,
            "hidden": hidden,
            "depth": depth,
            "num_classes": num_classes,
            "cond_dim": cond_dim,
            "time_dim": time_dim,
        }
        self.shape = (dim,)
        self.num_classes, self.cond_dim, self.time_dim = num_classes, cond_dim, time_dim
        class_dim = hidden if num_classes else 0
        self.embed_class = nn.Embedding(num_classes + 1, class_dim) if num_classes else None
        widths = [dim + time_dim + class_dim + cond_dim] + [hidden] * depth
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden, dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def null_class(self) -> int | None:
        """The index that stands for "no label"; None for a network without classes."""
        return self.num_classes or None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """x [B, dim], t [B] in [0, 1], y [B] integer labels (None: the null class), c [B, cond_dim] -> [B, dim]."""
        if x.dim() != 2 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be [B, {self.shape[0]}]; got {list(x.shape)}")
        parts = [x, timestep_embedding(t, self.time_dim).to(x.dtype)]
        if self.embed_class is not None:
            if y is None:
                y = torch.full(x.shape[:1], self.num_classes, dtype=torch.int64, device=x.device)
            elif y.shape != x.shape[:1]:
                raise ValueError(f"y must hold one label a sample, [{x.shape[0]}]; got {list(y.shape)}")
            parts.append(self.embed_class(y))
        elif y is not None:
            raise ValueError("y was given to an MLP without classes: build it with num_classes=")
        if self.cond_dim:
            if c is None or c.shape != (x.shape[0], self.cond_dim):
                got = "None" if c is None else list(c.shape)
                raise ValueError(f"c must be [{x.shape[0]}, {self.cond_dim}]; got {got}")
            parts.append(c.to(x.dtype))
        elif c is not None:
            raise ValueError("c was given to an MLP without a condition vector: build it with cond_dim=")
        return self.head(self.body(torch.cat(parts, dim=-1)))
