"""The small fields that engines are measured on: MLPs over (x, raw t), as users of flow matching write them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {"SiLU": nn.SiLU, "ReLU": nn.ReLU}
# Standard deviation of a weight, times the root of its inputs: the field then turns trajectories enough that an adaptive
# solver has something to choose, and does not tear neighbours apart, so that all solvers can be held to one result.
_GAIN = {"SiLU": 1.4, "ReLU": 1.0}


class Velocity(nn.Module):
    """``net([x, t])``: x [B, dim] and t of [B] or one for all (0-dim), in any spelling that the peers call with."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times = t.reshape(-1, 1).to(x.dtype).expand(x.shape[0], 1)
        return self.net(torch.cat([x, times], dim=1))

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(weight [out, in], bias [out]) from the input to the output."""
        return [(layer.weight, layer.bias) for layer in self.net if isinstance(layer, nn.Linear)]


def velocity(
    depth: int, width: int, *, dim: int = 2, activation: str = "SiLU", device: str = "cpu", seed: int = 0
) -> Velocity:
    """``depth`` hidden layers of ``width`` over dim + 1 inputs, float32, the same weights on every call; no gradients."""
    draw = torch.Generator().manual_seed(seed)
    widths = [dim + 1, *[width] * depth, dim]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            layer.weight.normal_(0.0, _GAIN[activation] / math.sqrt(before), generator=draw)
            layer.bias.normal_(0.0, 0.1, generator=draw)
        layers.append(layer)
        if number < depth:
            layers.append(_ACTIVATIONS[activation]())
    return Velocity(nn.Sequential(*layers)).requires_grad_(False).to(device)


def evaluation_operations(depth: int, width: int, dim: int = 2) -> int:
    """Multiplications and additions by weights in one evaluation for one sample; the activations are not counted."""
    return 2 * sum(before * after for before, after in pairwise([dim + 1, *[width] * depth, dim]))
