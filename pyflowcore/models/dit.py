"""Diffusion transformers with adaptive norms, in plain PyTorch: DiT, SiT and LightningDiT by configuration.

After Peebles & Xie, "Scalable Diffusion Models with Transformers" (ICCV 2023), section 3: patches are tokens, and the
time and the condition steer every block through adaptive norms whose modulations start at zero ("adaLN-zero"), so that a
fresh network is the identity in its blocks and zero at its output. SiT (Ma et al. 2024) is the same network along other
paths; LightningDiT (Yao et al., "Reconstruction vs. Generation", CVPR 2025) has RMS norms, gated MLPs and rotary
positions. ``sizes.py`` knows the published sizes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import sincos_positions, timestep_embedding
from .feedforward import FeedForward, make_feedforward
from .norms import Norm, make_norm, modulate
from .rope import apply_rotary, grid_positions, rotary_table

Positions = Literal["sincos", "learned", "none"]
Rotary = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention over tokens, [B, N, width] -> [B, N, width].

    ``qk_norm`` gives every head's queries and keys a norm over the head's dimensions, with a learned scale of that length
    which the heads share (Henry et al. 2020; Dehghani et al. 2023), so that the logits cannot grow without bound.
    """

    def __init__(self, width: int, heads: int, qk_norm: Norm | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = make_norm(qk_norm, width // heads, affine=True) if qk_norm else nn.Identity()
        self.k_norm = make_norm(qk_norm, width // heads, affine=True) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """One transformer block. c [B, width] gives shift, scale and gate of both halves; all six start at zero."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        mlp: FeedForward = "gelu",
        norm: Norm = "layer",
        norm_affine: bool = False,
        qk_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, width, affine=norm_affine)
        self.attention = Attention(width, heads, qk_norm)
        self.norm2 = make_norm(norm, width, affine=norm_affine)
        self.mlp = make_feedforward(mlp, width, mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor, rotary: Rotary | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(c)).chunk(6, dim=-1)
        x = torch.addcmul(x, gate1[:, None], self.attention(modulate(self.norm1(x), shift1, scale1), rotary))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class Head(nn.Module):
    """Tokens back to patches; modulation and projection start at zero, so a fresh network answers zero."""

    def __init__(self, width: int, outputs: int, *, norm: Norm = "layer", norm_affine: bool = False) -> None:
        super().__init__()
        self.norm = make_norm(norm, width, affine=norm_affine)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(c)).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """Diffusion transformer over square images or latents: ``forward(x, t, y=None, c=None)``.

    The condition of every block is the sum of the embedded time, class and vector.

    Args:
        size: side of the square images, in pixels.
        channels: their channels.
        patch: side of a patch; must divide ``size``.
        width, depth, heads: width of a token (a multiple of 4 and of ``heads``), number of blocks, of attention heads.
        mlp_ratio: hidden width of the MLPs over ``width``, before a "swiglu" takes two thirds of it.
        num_classes: 0 for none; else labels run from 0 to ``num_classes - 1`` and index ``num_classes`` is the learned
            null class, which stands for "no label" in training (label drop) and in guidance.
        cond_dim: size of the condition vector c; 0 for none.
        mlp: "gelu", or "swiglu" (``feedforward.py``).
        norm: "layer", or "rms", everywhere but on queries and keys.
        norm_affine: learned scales (and shifts of "layer") in these norms, before the modulation.
        qk_norm: None, "rms" or "layer": norm of every head's queries and keys (``Attention``), before they turn.
        positions: what is added to the tokens: fixed "sincos", "learned" ones, or "none".
        rope: turn queries and keys by their row and column, half of a head each, in adjacent pairs (``rope.py``).
        time_dim: number of sinusoids of t, even; None: ``width``.
        time_scale: what t is multiplied by before its sinusoids: 1000 here; the published SiT and LightningDiT have 1,
            and so has DiT, whose times run from 0 to 999 of themselves.
        outputs: channels that the head computes; None: ``channels``. ``forward`` answers the first ``channels`` of them;
            what is over (the variances of the published DiT and SiT, ``2 * channels``) is computed and dropped.

    Raises:
        ValueError: if a size or an option does not fit, or if x, t, y or c come in the wrong shape, or not as built.
    """

    positions: Tensor | None
    rotary_cos: Tensor | None
    rotary_sin: Tensor | None

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
        *,
        cond_dim: int = 0,
        mlp: FeedForward = "gelu",
        norm: Norm = "layer",
        norm_affine: bool = False,
        qk_norm: Norm | None = None,
        positions: Positions = "sincos",
        rope: bool = False,
        time_dim: int | None = None,
        time_scale: float = 1000.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        if patch < 1 or size < 1 or size % patch:
            raise ValueError(f"patch must divide size; got patch={patch} and size={size}")
        if heads < 1 or width < 4 or width % heads or width % 4:
            raise ValueError(
                f"width must be a multiple of 4 and of heads; got width={width} and heads={heads}"
            )
        if min(channels, depth) < 1 or min(num_classes, cond_dim) < 0:
            raise ValueError(
                "channels and depth must be at least 1, num_classes and cond_dim at least 0; got "
                f"{channels}, {depth}, {num_classes}, {cond_dim}"
            )
        if time_dim is not None and (time_dim < 2 or time_dim % 2):
            raise ValueError(f"time_dim must be even and at least 2; got {time_dim}")
        if outputs is not None and outputs < channels:
            raise ValueError(f"outputs must be at least channels={channels}; got {outputs}")
        if positions not in ("sincos", "learned", "none"):
            raise ValueError(f'positions must be "sincos", "learned" or "none"; got {positions!r}')
        if rope and width // heads % 4:
            raise ValueError(
                f"rope needs heads of a multiple of 4 dimensions; got width={width} and heads={heads}"
            )
        self.config: dict[str, int | float | str | bool | None] = {
            "size": size,
            "channels": channels,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "num_classes": num_classes,
            "cond_dim": cond_dim,
            "mlp": mlp,
            "norm": norm,
            "norm_affine": norm_affine,
            "qk_norm": qk_norm,
            "positions": positions,
            "rope": rope,
            "time_dim": time_dim,
            "time_scale": time_scale,
            "outputs": outputs,
        }
        self.shape = (channels, size, size)
        self.num_classes, self.cond_dim = num_classes, cond_dim
        self.width, self.patch, self.side = width, patch, size // patch
        self.time_dim, self.time_scale = time_dim or width, time_scale
        self.embed = nn.Linear(channels * patch * patch, width)
        self.embed_time = nn.Linear(self.time_dim, width)
        self.mix_time = nn.Linear(width, width)
        self.embed_class = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.embed_cond = nn.Linear(cond_dim, width) if cond_dim else None
        self.mix_cond = nn.Linear(width, width) if cond_dim else None
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(self.side**2, width))
        else:
            fixed = sincos_positions(self.side, width) if positions == "sincos" else None
            self.register_buffer("positions", fixed, persistent=False)
        table = rotary_table(grid_positions(self.side, self.side), width // heads) if rope else (None, None)
        self.register_buffer("rotary_cos", table[0], persistent=False)
        self.register_buffer("rotary_sin", table[1], persistent=False)
        blocks = [
            Block(width, heads, mlp_ratio, mlp=mlp, norm=norm, norm_affine=norm_affine, qk_norm=qk_norm)
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(width, (outputs or channels) * patch * patch, norm=norm, norm_affine=norm_affine)
        self._initialise([block.modulation for block in blocks] + [self.head.modulation, self.head.out])

    def _initialise(self, zero: list[nn.Linear]) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        small: list[Tensor] = [self.embed_time.weight, self.mix_time.weight]
        small += [
            layer.weight for layer in (self.embed_class, self.embed_cond, self.mix_cond) if layer is not None
        ]
        if isinstance(self.positions, nn.Parameter):
            small.append(self.positions)
        for weight in small:
            nn.init.normal_(weight, std=0.02)
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def null_class(self) -> int | None:
        """The index that stands for "no label"; None for a network without classes."""
        return self.num_classes or None

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

    def time_steer(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedded times: t [B] -> [B, width] of ``dtype``."""
        phases = timestep_embedding(t, self.time_dim, scale=self.time_scale).to(dtype)
        return self.mix_time(F.silu(self.embed_time(phases)))

    def condition_steer(
        self, y: Tensor | None, c: Tensor | None, batch: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """The embedded class and vector, summed: [batch, width] of ``dtype``; None for a network without either."""
        steer = None
        if self.embed_class is not None:
            if y is None:
                y = torch.full((batch,), self.num_classes, dtype=torch.int64, device=device)
            elif y.shape != (batch,):
                raise ValueError(f"y must hold one label a sample, [{batch}]; got {list(y.shape)}")
            steer = self.embed_class(y)
        elif y is not None:
            raise ValueError("y was given to a DiT without classes: build it with num_classes=")
        if self.embed_cond is not None and self.mix_cond is not None:
            if c is None or c.shape != (batch, self.cond_dim):
                got = "None" if c is None else list(c.shape)
                raise ValueError(f"c must be [{batch}, {self.cond_dim}]; got {got}")
            vector = self.mix_cond(F.silu(self.embed_cond(c.to(dtype))))
            steer = vector if steer is None else steer + vector
        elif c is not None:
            raise ValueError("c was given to a DiT without a condition vector: build it with cond_dim=")
        return steer

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """x [B, C, size, size], t [B], y [B] integer labels (None: the null class), c [B, cond_dim] -> like x.

        t lies in [0, 1] for the default ``time_scale``.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be [B, {', '.join(map(str, self.shape))}]; got {list(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must hold one time a sample, [{x.shape[0]}]; got {list(t.shape)}")
        tokens = self.embed(self.patchify(x))
        if self.positions is not None:
            tokens = tokens + self.positions
        rotary = None
        if self.rotary_cos is not None and self.rotary_sin is not None:
            rotary = self.rotary_cos, self.rotary_sin
        # What steers the blocks: the embedded time, class and vector, summed.
        steer = self.time_steer(t, x.dtype)
        if (condition := self.condition_steer(y, c, x.shape[0], x.dtype, x.device)) is not None:
            steer = steer + condition
        for block in self.blocks:
            tokens = block(tokens, steer, rotary)
        # A patch holds its channels one after another, so the image's own come first.
        answer = self.head(tokens, steer)[..., : self.shape[0] * self.patch * self.patch]
        return self.unpatchify(answer)
