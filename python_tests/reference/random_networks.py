"""Random packed networks of every shape that the operators take."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyflowcore.network import Dense, Feature, Network

PARAMETERS = {"softplus": 1.3, "elu": 0.7, "leaky_relu": 0.1}


class Packed(NamedTuple):
    """What the operators take of a network."""

    params: Tensor
    layers: Tensor
    features: Tensor


def pack(network: Network, dtype: torch.dtype = torch.float64) -> Packed:
    return Packed(network.pack(dtype), network.layer_table(), network.feature_table())


def random_network(
    dim: int, widths: Sequence[int], activation: str = "silu", *, conditions: int = 0, features: int = 1,
    residuals: bool = False, after: str = "identity", seed: int = 0,
) -> Network:  # fmt: skip
    """Layers of the given widths and one of ``dim`` outputs, weights such that values keep their size.

    With residuals, each layer whose width an earlier input shares adds one: its own, or the one before that. A feature is the
    time itself, then sines and cosines of growing frequency.
    """
    make = torch.Generator().manual_seed(seed)
    sizes = [features + conditions + dim, *widths, dim]
    layers = []
    free = 1  # the first layer whose input may still wait
    for number, (into, out) in enumerate(itertools.pairwise(sizes)):
        last = number == len(widths)
        residual = -1
        if residuals and not last and number >= 1:
            # Every other time over two layers.
            fitting = [k for k in range(free, number + 1) if sizes[k] == out]
            if fitting:
                residual = fitting[0] if number % 2 == 0 else fitting[-1]
                free = number + 1 if residual < number else free
        layers.append(
            Dense(
                torch.randn(out, into, generator=make, dtype=torch.float64) / into**0.5,
                torch.randn(out, generator=make, dtype=torch.float64) * 0.3,
                "identity" if last else activation,
                0.0 if last else PARAMETERS.get(activation, 0.0),
                residual,
                "identity" if last else after,
                0.0 if last else PARAMETERS.get(after, 0.0),
            )
        )
    kinds = itertools.cycle(("sine", "cosine"))
    waves = [
        Feature(kind, 2.3 * 1.4**k, 0.1 * k) for k, kind in zip(range(features - 1), kinds, strict=False)
    ]
    return Network(tuple(layers), tuple([Feature("linear", 1.0), *waves][:features]), conditions, dim)
