"""What depends on time and condition alone, for every row of a plan before the first step: adaptive modulations.

A plan knows its times before it starts. So the embedded times of all rows are one batch, and every modulation layer is
one product over all rows and samples in place of one small product a row: the weights, which are most of what such a
product moves, are read once for a trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Steering"]

# Of modulations that are kept at once. Longer plans, or larger batches, make them for a few rows at a time.
MOST_BYTES = 256 << 20


class Steering:
    """The modulations of every layer at every row of a plan.

    Args:
        layers: the modulation layers, each [out, width] with a bias.
        times: the embedded times, [rows, width], or [rows, n, width] where samples have times of their own.
        conditions: the embedded conditions of all branches' samples, [n, width]; None where there are none.
        most_bytes: of modulations at once.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        times: Tensor,
        conditions: Tensor | None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._layers, self._conditions = layers, conditions
        self._times = times if times.dim() == 3 else times[:, None]
        # Where nothing but a shared time steers, all samples share a row's modulations.
        samples = max(self._times.shape[1], 1 if conditions is None else len(conditions))
        one = samples * sum(layer.out_features for layer in layers) * times.element_size()
        self._shared = samples == 1
        self._chunk = max(1, min(len(times), most_bytes // max(one, 1)))
        self._first = -1
        self._made: list[Tensor] = []
        self._cut: dict[int, list[list[Tensor]]] = {}

    def at(self, row: int, n: int) -> list[Tensor]:
        """The modulations of the plan's row for the first n samples: of each layer [n, out_features]."""
        first = row - row % self._chunk
        if first != self._first:
            self._made, self._cut = self._make(first, first + self._chunk), {}
            self._first = first
        here = [made[row - first] for made in self._made]
        return [one.expand(n, -1) if self._shared else one[:n] for one in here]

    def pieces(self, row: int, n: int, width: int) -> list[Tensor]:
        """The same as [pieces of ``width``, n, width] of each layer. The views of all rows are made at once, by one call a
        layer: for a small model each takes as long as a product."""
        if row // self._chunk * self._chunk != self._first:
            self.at(row, n)
        if n not in self._cut:
            layers = [made.expand(-1, n, -1) if self._shared else made[:, :n] for made in self._made]
            views = [made.unflatten(2, (-1, width)).transpose(1, 2).unbind(0) for made in layers]
            self._cut[n] = [list(here) for here in zip(*views, strict=True)]
        return self._cut[n][row - self._first]

    def _make(self, first: int, last: int) -> list[Tensor]:
        steer = self._times[first:last]
        if self._conditions is not None:
            steer = steer + self._conditions
        steer = F.silu(steer)
        return [F.linear(steer, layer.weight, layer.bias) for layer in self._layers]
