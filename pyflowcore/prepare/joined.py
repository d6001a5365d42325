"""Joined: linear layers over the same input as one layer, so that one product reads the input once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Joined"]


class Joined:
    """Layers without bias, their outputs side by side; what ``Products`` takes for a layer.

    Args:
        layers: of the same inputs.
        norms: of each layer the norm before it, if only their weights differ: these go into the layer's columns, so that the
            inputs are normalised once, without weight. Empty: nothing of the kind.
    """

    def __init__(self, layers: Sequence[nn.Linear], norms: Sequence[nn.Module] = ()) -> None:
        if any(layer.bias is not None for layer in layers):
            raise ValueError("layers must have no bias: one of them has")
        self._layers, self._norms = tuple(layers), tuple(norms)

    @property
    def weight(self) -> Tensor:
        """[out_features of all, in_features]: a copy of the weights, as they are when asked."""
        weights: list[Tensor] = [layer.weight for layer in self._layers]
        if self._norms:
            scales = [cast("Tensor", norm.weight) for norm in self._norms]
            weights = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        return torch.cat(weights)

    @property
    def bias(self) -> None:
        return None
