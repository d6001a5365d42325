"""Convolutions of a model, and twofold enlargements before one, which are not made.

A convolution of 3 x 3 after every pixel was copied to 2 x 2 sees each pixel under several of its taps, and which ones depends
on the parity of the answer's row and column alone. So it is four convolutions of 2 x 2 on the small map, their weights sums of
the taps: 16 multiplications for 36.

Weights are not packed for oneDNN as those of products are: its kernels for packed ones add up all channels and taps in one
chain of roundings, and were four times as far from the truth at 520 channels, more than prepared fields may be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import Products
from .straight import watched

__all__ = ["convolved", "enlarged"]


def convolved(layer: nn.Conv2d, x: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """The layer's convolution of x [B, C, H, W], with another bias than its own if one is given; contiguous."""
    bias = layer.bias if bias is None else bias
    # Weights in channels_last give such answers.
    return F.conv2d(x, layer.weight, bias, layer.stride, layer.padding).contiguous()


def enlarged(products: Products, layer: nn.Conv2d, x: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """:func:`convolved` of x with every pixel copied to 2 x 2; the layer is one of 3 x 3 that keeps the size."""
    # Sums of half-precision taps would be rounded, which the model's are not; on other devices it was not measured.
    exact = layer.weight.dtype in (torch.float32, torch.float64)
    if not exact or x.device.type != "cpu" or watched():
        return convolved(layer, F.interpolate(x, scale_factor=2.0, mode="nearest"), bias=bias)
    bias = layer.bias if bias is None else bias
    taps = products.kept(layer, "taps", lambda: parities(layer.weight))
    height, width = x.shape[2:]
    y = F.conv2d(x, taps, None if bias is None else bias.repeat(4), padding=1)
    y = y.unflatten(1, (2, 2, layer.out_channels))
    # An answer at an odd row, or column, begins one pixel later.
    rows = [
        torch.stack([y[:, i, j, :, i : i + height, j : j + width] for j in range(2)], dim=-1)
        for i in range(2)
    ]
    return torch.stack(rows, dim=3).flatten(4).flatten(2, 3)


def parities(weight: Tensor) -> Tensor:
    """The weights of four convolutions, by the parity of the answer's row, then column: [O, C, 3, 3] -> [4 O, C, 2, 2]."""
    sums = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)
    found = torch.einsum("aip,ocpq,bjq->abocij", sums, weight.detach().double(), sums)
    return found.flatten(0, 2).to(weight.dtype).contiguous()
