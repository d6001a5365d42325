"""Slice: some rows or columns of a linear layer, as a layer of its own."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Slice"]

EVERY = slice(None)


class Slice:
    """A part of a layer's outputs (``rows``) and inputs (``columns``); a view of its weights as they are when asked.

    Without all inputs it is a summand of the layer, so the bias stays with whoever adds the parts up.
    """

    def __init__(self, layer: nn.Linear, rows: slice = EVERY, columns: slice = EVERY) -> None:
        self._layer, self._rows, self._columns = layer, rows, columns

    @property
    def out_features(self) -> int:
        return len(range(self._layer.out_features)[self._rows])

    @property
    def weight(self) -> Tensor:
        return self._layer.weight[self._rows, self._columns]

    @property
    def bias(self) -> Tensor:
        return self._layer.bias[self._rows]
