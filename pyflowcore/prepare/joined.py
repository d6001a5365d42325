"""Joined: linear layers over the same input as one layer, so that one product reads the input once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Joined"]


class Joined:
    """Layers without bias, their outputs side by side; what ``Products`` takes for a layer.

    Args:
        keep: keeps what it is given a maker of, until the model's weights are written: ``Packed.keep``.
        name: under which it does.
        layers: of the same inputs.
        norms: of each layer the norm before it, if only their weights differ: these go into the layer's columns, so that the
            inputs are normalised once, without weight. Empty: nothing of the kind.
    """

    bias: Tensor | None = None

    def __init__(
        self,
        keep: Callable[[str, Callable[[], Tensor]], Tensor],
        name: str,
        layers: Sequence[nn.Linear],
        norms: Sequence[nn.Module] = (),
    ) -> None:
        if any(layer.bias is not None for layer in layers):
            raise ValueError("layers must have no bias: one of them has")
        self._keep, self._name = keep, name
        self._layers, self._norms = tuple(layers), tuple(norms)
        self.out_features = sum(layer.out_features for layer in layers)

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features]: a copy of the layers' weights."""
        return self._keep(self._name, self._made)

    def _made(self) -> Tensor:
        weights: list[Tensor] = [layer.weight for layer in self._layers]
        if self._norms:
            scales = [cast("Tensor", norm.weight) for norm in self._norms]
            weights = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        return torch.cat(weights).detach()
