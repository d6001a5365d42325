"""models.UNet through the fused operators.

Between two convolutions lies one pass: group norm, scale and shift, the modulation of the sample and SiLU, in place where
nothing else reads what comes in. Convolutions, products and attention are PyTorch's, and feature maps are contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models.unet import UNet
from ..models.unet_blocks import Attention, Resample, ResBlock, Stage
from .convolutions import convolved, enlarged
from .packing import Evaluate, Packed
from .products import Products
from .steering import Steering

__all__ = ["PackedUNet"]

# Of each residual block, what time and class say: [B, channels] or, scales first, [B, 2 channels].
Steps = dict[ResBlock, Tensor]


def normed(norm: nn.GroupNorm, x: Tensor, *, silu: bool = True) -> Tensor:
    """silu(norm(x)), or norm(x)."""
    return ops.group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=silu)


def normed_(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """silu(norm(x) (1 + scale) + shift) into x, which is returned."""
    ops.group_norm_silu_(
        x, x, norm.num_groups, norm.weight, norm.bias, scale=scale, shift=shift, eps=norm.eps
    )
    return x


def changed(resize: nn.Module, layer: nn.Conv2d, products: Products, x: Tensor, **bias: Tensor) -> Tensor:
    """The convolution of x in its new resolution."""
    if isinstance(resize, nn.Upsample):
        return enlarged(products, layer, x, **bias)
    return convolved(layer, resize(x), **bias)


def resampled(products: Products, piece: Resample, x: Tensor) -> Tensor:
    if isinstance(piece.conv, nn.Conv2d):
        return changed(piece.resize, piece.conv, products, x)
    resized: Tensor = piece.resize(x)
    return resized


def residual(products: Products, block: ResBlock, x: Tensor, said: Tensor) -> Tensor:
    """A residual block, told ``said``; x is left as it is."""
    h = normed(block.norm1, x)
    scale: Tensor | None = None
    shift: Tensor | None = None
    if block.scale_shift:
        scale, shift = said.chunk(2, dim=1)
        h = changed(block.resize, block.conv1, products, h)
    elif len(said) == 1 or said.stride(0) == 0:
        # The same for all samples: one bias with the convolution's own.
        assert block.conv1.bias is not None
        h = changed(block.resize, block.conv1, products, h, bias=block.conv1.bias + said[0])
    else:
        h = changed(block.resize, block.conv1, products, h).add_(said[:, :, None, None])
    h = normed_(block.norm2, h, scale, shift)
    x = block.resize(x)
    if isinstance(block.skip, nn.Conv2d):
        x = convolved(block.skip, x)
    return convolved(block.conv2, h).add_(x)


class PackedUNet(Packed[UNet]):
    """A UNet ready for evaluation."""

    conditions = ("y",)

    @property
    def operators(self) -> tuple[str, ...]:
        return ("group_norm_silu_",)

    def refresh(self) -> None:
        super().refresh()
        self._blocks = [module for module in self.model.modules() if isinstance(module, ResBlock)]

    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        model = self.model
        embedded = model.time_steer(times.reshape(-1), self.dtype)
        steering = Steering(
            [block.modulation for block in self._blocks],
            embedded.reshape(*times.shape, model.cond),
            model.condition_steer(cond.get("y"), times.new_empty(n)),
        )
        line = self.straight(self.evaluate, lambda x, row: steering.at(row, len(x)))

        def evaluate(x: Tensor, row: int) -> Tensor:
            model.check_points(x)
            if len(x) > n:
                raise ValueError(f"x has {len(x)} samples, the conditions have {n}")
            return line(x, row)

        return evaluate

    def evaluate(self, x: Tensor, *said: Tensor) -> Tensor:
        """One evaluation, given what every residual block is told."""
        model, steps = self.model, dict(zip(self._blocks, said, strict=True))
        h = convolved(model.stem, x)
        left = [h]
        for piece in model.down:
            h = self._through(piece, h, steps)
            left.append(h)
        for piece in model.middle:
            h = self._through(piece, h, steps)
        for piece in model.up:
            h = self._through(piece, torch.cat([h, left.pop()], dim=1), steps)
        out, kept = model.out, model.shape[0]
        assert out.bias is not None
        # Of what is computed and dropped (variances) nothing.
        return F.conv2d(normed_(model.norm, h), out.weight[:kept], out.bias[:kept], padding=out.padding)

    def _through(self, piece: nn.Module, x: Tensor, steps: Steps) -> Tensor:
        if isinstance(piece, ResBlock):
            return residual(self.products, piece, x, steps[piece])
        if isinstance(piece, Resample):
            return resampled(self.products, piece, x)
        assert isinstance(piece, Stage)
        x = residual(self.products, piece.block, x, steps[piece.block])
        if piece.attention is not None:
            x = self._attended(piece.attention, x)
        return x if piece.resample is None else self._through(piece.resample, x, steps)

    def _attended(self, attention: Attention, x: Tensor) -> Tensor:
        """x, which is written, with what attention among its pixels adds."""
        batch, channels = x.shape[:2]
        tokens = normed(attention.norm, x, silu=False).flatten(2).transpose(1, 2)
        product = self.products(attention.qkv, tokens.contiguous(), bias=True)
        q, k, v = product.view(batch, -1, 3, attention.heads, channels // attention.heads).permute(
            2, 0, 3, 1, 4
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x.flatten(2).add_(self.products(attention.out, mixed, bias=True).transpose(1, 2))
        return x
