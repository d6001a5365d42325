"""The pieces of the U-Net: residual blocks, attention over pixels, changes of resolution, and a stage of them.

After Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (NeurIPS 2021), section 3 ("ADM"). Every piece that
lies on the way down or up is called as ``piece(x, c)``, x [B, C, H, W] and c [B, cond] (what the time and the class
say), whether it reads c or not.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Direction = Literal["down", "up"]
_FEWEST = 4  # channels of a group: the mean and variance of fewer, over the few pixels of a deep level, say too little


def group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Group norm (Wu & He 2018) with a learned scale and shift, of ``groups`` groups where the channels allow.

    Elsewhere the largest divisor of ``groups`` that divides ``channels`` and leaves every group at least 4 of them: 32 groups
    for 128, 192 and 256 channels, 16 for 80, 1 for an odd number. Statistics of half-precision input are float32.
    """
    fewer = (n for n in range(groups, 0, -1) if groups % n == 0 and channels % n == 0)
    return nn.GroupNorm(next((n for n in fewer if channels >= _FEWEST * n), 1), channels)


def resizer(direction: Direction | None) -> nn.Module:
    """Without parameters: the mean of 2 x 2 pixels ("down"), every pixel four times ("up"), nothing (None)."""
    if direction is None:
        return nn.Identity()
    return nn.AvgPool2d(2) if direction == "down" else nn.Upsample(scale_factor=2, mode="nearest")


class ResBlock(nn.Module):
    """A residual block that c steers, [B, channels_in, H, W] -> [B, channels_out, H', W'].

        h = conv1(resize(silu(norm1(x))))
        h = conv2(dropout(silu(norm2(h) * (1 + scale) + shift)))       scale, shift = modulation(silu(c))
        x = skip(resize(x)) + h

    conv2 starts at zero, so that a fresh block passes on what ``skip`` gives.

    Args:
        channels_in, channels_out: where they differ, ``skip`` is a 1 x 1 convolution, else nothing.
        cond: size of c.
        dropout: share of the second convolution's input that training drops.
        scale_shift: False adds ``modulation(silu(c))`` to what enters norm2 instead, as Ho et al. 2020 did.
        direction: "down" halves H and W, "up" doubles them, None leaves them.
        groups: of both norms, see ``group_norm``.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        cond: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = True,
        direction: Direction | None = None,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resize = resizer(direction)
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(cond, (2 if scale_shift else 1) * channels_out)
        self.norm2 = group_norm(channels_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(self.resize(F.silu(self.norm1(x))))
        modulation = self.modulation(F.silu(c))[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        return self.skip(self.resize(x)) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention among all pixels, x + out(attention(norm(x))), [B, C, H, W] -> like x. ``out`` starts at zero.

    Args:
        channels: C.
        head_channels: channels of one head; must divide C. 0: one head of all.
        groups: of the norm.
    """

    def __init__(self, channels: int, head_channels: int, *, groups: int = 32) -> None:
        super().__init__()
        self.heads = channels // head_channels if head_channels else 1
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
        return x + self.out(mixed).transpose(1, 2).reshape(x.shape)


class Resample(nn.Module):
    """Half or twice the height and width, [B, C, H, W] -> [B, C, H', W'], without a residual block.

    With ``convolution`` a 3 x 3 convolution does it, of stride 2 ("down") or after every pixel came four times ("up");
    without, the mean of 2 x 2 pixels, or every pixel four times.
    """

    def __init__(self, channels: int, direction: Direction, *, convolution: bool) -> None:
        super().__init__()
        stride = 2 if convolution and direction == "down" else 1
        self.resize = resizer(None if stride == 2 else direction)
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1) if convolution else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.conv(self.resize(x))


class Stage(nn.Module):
    """A residual block, then attention and then another resolution where it has them."""

    def __init__(self, block: ResBlock, attention: Attention | None, resample: nn.Module | None) -> None:
        super().__init__()
        self.block, self.attention, self.resample = block, attention, resample

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.block(x, c)
        if self.attention is not None:
            x = self.attention(x, c)
        return x if self.resample is None else self.resample(x, c)
