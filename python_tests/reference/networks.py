"""Small networks with weights of their own, for the tests of the engines."""

from __future__ import annotations

import itertools
import math

import torch

from pyflowcore.network import Dense, Feature, Network


def small_network(
    dim: int = 3, conditions: int = 0, width: int = 10, depth: int = 2, activation: str = "silu", seed: int = 0,
    residual: bool = False,
) -> Network:  # fmt: skip
    """depth hidden layers of the width, three features of time; layers 1 to depth - 1 are residual if asked."""
    make = torch.Generator().manual_seed(seed)
    features = (Feature("linear", 1.0), Feature("sine", 2 * math.pi), Feature("cosine", 3.0, 0.25))
    sizes = [len(features) + conditions + dim, *[width] * depth, dim]
    layers = []
    for number, (into, out) in enumerate(itertools.pairwise(sizes)):
        last = number == len(sizes) - 2
        layers.append(
            Dense(
                torch.randn(out, into, generator=make, dtype=torch.float64) / math.sqrt(into),
                0.3 * torch.randn(out, generator=make, dtype=torch.float64),
                "identity" if last else activation,
                1.0,
                residual=number if residual and 0 < number < len(sizes) - 2 else -1,
            )
        )
    return Network(tuple(layers), features, conditions, dim)
