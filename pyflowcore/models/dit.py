"""A small diffusion transformer with class conditions, in plain PyTorch.

After Peebles & Xie, "Scalable Diffusion Models with Transformers" (ICCV 2023), section 3: patches are tokens, and the
time and the class steer every block through adaptive layer norms whose modulations start at zero ("adaLN-zero"), so
that a fresh network is the identity in its blocks and zero at its output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import sincos_positions, timestep_embedding
from .norms import modulate


class Attention(nn.Module):
    """Multi-head self-attention over tokens, [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """One transformer block. c [B, width] gives shift, scale and gate of both halves; all six start at zero."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(c)).chunk(6, dim=-1)
        x = torch.addcmul(x, gate1[:, None], self.attention(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class Head(nn.Module):
    """Tokens back to patches; modulation and projection start at zero, so a fresh network answers zero."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(c)).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """Class-conditional diffusion transformer: ``forward(x, t, y)``.

    Args:
        size: side of the square images, in pixels.
        channels: their channels.
        patch: side of a patch; must divide ``size``.
        width, depth, heads: width of a token (a multiple of 4 and of ``heads``), number of blocks, of attention heads.
        mlp_ratio: hidden width of the MLPs over ``width``.
        num_classes: labels run from 0 to ``num_classes - 1``; index ``num_classes`` is the learned null class, which
            stands for "no label" in training (label drop) and in guidance.

    Raises:
        ValueError: if a size does not fit, or if x or y come in the wrong shape or type.
    """

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        patch: int = 2,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if patch < 1 or size < 1 or size % patch:
            raise ValueError(f"patch must divide size; got patch={patch} and size={size}")
        if heads < 1 or width < 4 or width % heads or width % 4:
            raise ValueError(
                f"width must be a multiple of 4 and of heads; got width={width} and heads={heads}"
            )
        if min(channels, depth, num_classes) < 1:
            raise ValueError(
                f"channels, depth and num_classes must be at least 1; got {channels}, {depth}, {num_classes}"
            )
        self.config: dict[str, int | float] = {
            "size": size,
            "channels": channels,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "num_classes": num_classes,
        }
        self.shape = (channels, size, size)
        self.num_classes, self.width, self.patch, self.side = num_classes, width, patch, size // patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.embed_time = nn.Linear(width, width)
        self.mix_time = nn.Linear(width, width)
        self.embed_class = nn.Embedding(num_classes + 1, width)
        self.register_buffer("positions", sincos_positions(self.side, width), persistent=False)
        blocks = [Block(width, heads, mlp_ratio) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(width, channels * patch * patch)
        self._initialise([block.modulation for block in blocks] + [self.head.modulation, self.head.out])

    def _initialise(self, zero: list[nn.Linear]) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.embed_time.weight, self.mix_time.weight, self.embed_class.weight):
            nn.init.normal_(weight, std=0.02)
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def null_class(self) -> int:
        """The index that stands for "no label"."""
        return self.num_classes

    def patchify(self, x: Tensor) -> Tensor:
        """Images [B, C, size, size] -> tokens [B, N, C * patch * patch], row by row."""
        side, p, channels = self.side, self.patch, self.shape[0]
        grid = x.reshape(-1, channels, side, p, side, p).permute(0, 2, 4, 1, 3, 5)
        return grid.reshape(-1, side * side, channels * p * p)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """The inverse of ``patchify``."""
        side, p, channels = self.side, self.patch, self.shape[0]
        grid = tokens.reshape(-1, side, side, channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(-1, *self.shape)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, size, size], t [B] in [0, 1], y [B] integer labels (None: the null class) -> like x."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be [B, {', '.join(map(str, self.shape))}]; got {list(x.shape)}")
        if y is None:
            y = torch.full(x.shape[:1], self.null_class, dtype=torch.int64, device=x.device)
        elif y.shape != x.shape[:1]:
            raise ValueError(f"y must hold one label a sample, [{x.shape[0]}]; got {list(y.shape)}")
        tokens = self.embed(self.patchify(x)) + self.positions
        phases = timestep_embedding(t, self.width).to(x.dtype)
        c = self.mix_time(F.silu(self.embed_time(phases))) + self.embed_class(y)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.unpatchify(self.head(tokens, c))
