"""A diffusion transformer over two streams, text and image, which attend jointly but have weights of their own.

Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (2024), section 4 and figure 2: the
MM-DiT of Stable Diffusion 3. Its double blocks keep the streams' weights apart; the FLUX.1 models of Black Forest Labs (2024)
put single blocks behind them, where both streams share weights and attention and MLP stand side by side (Dehghani et al.,
"Scaling Vision Transformers to 22 Billion Parameters", 2023, section 2), and tell tokens their places by rotary angles.

In the joint sequence the text comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import timestep_embedding
from .norms import make_norm, modulate
from .rope import apply_rotary, grid_positions, rotary_table

Positions = Literal["sincos", "learned", "rope"]
Rotary = tuple[Tensor, Tensor]


def embedder(inputs: int, width: int) -> nn.Sequential:
    """Two layers that bring a time, a guidance scale or a pooled text [B, inputs] to [B, width]."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class Heads(nn.Module):
    """[B, N, 3 * width], queries, keys and values side by side, to three of [B, heads, N, head_dim], ready for attention.

    With ``qk_norm`` queries and keys are divided by their root mean square, which bounds the logits (Esser et al. 2024,
    section 5.3.2); with rotary angles they are turned by them. ``queries=False`` leaves out what belongs to queries alone.
    """

    def __init__(self, heads: int, head_dim: int, *, qk_norm: bool, queries: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q = make_norm("rms", head_dim, affine=True) if qk_norm and queries else None
        self.norm_k = make_norm("rms", head_dim, affine=True) if qk_norm else None

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = qkv.shape
        parts = qkv.view(batch, tokens, 3, self.heads, width // (3 * self.heads)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        if self.norm_q is not None:
            q = self.norm_q(q)
        if self.norm_k is not None:
            k = self.norm_k(k)
        return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | None, mask: Tensor | None) -> Tensor:
    """Attention over [B, heads, N, head_dim] to [B, Nq, heads * head_dim]; rotary angles turn queries and keys first.

    There may be fewer queries than keys: then they are the last of the sequence. mask is [B, 1, 1, N], True at tokens that
    are seen, or None.
    """
    if rotary is not None:
        cos, sin = rotary
        skipped = k.shape[-2] - q.shape[-2]
        q, k = apply_rotary(q, cos[skipped:], sin[skipped:]), apply_rotary(k, cos, sin)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """What one stream owns in a double block: its modulation, its projections to and from attention, its MLP.

    ``c`` [B, width] gives shift, scale and gate of both halves, in this order; all six start at zero. A stream whose tokens
    nobody reads afterwards (``last``: the text of the last block where no single blocks follow) offers keys and values only:
    it has shift and scale of the first half, and no more. Its projection still has the rows for queries, as published.
    """

    def __init__(self, width: int, heads: int, inner: int, *, qk_norm: bool, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.modulation = nn.Linear(width, (2 if last else 6) * width)
        self.norm1 = make_norm("layer", width, affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.heads = Heads(heads, width // heads, qk_norm=qk_norm, queries=not last)
        if not last:
            self.out = nn.Linear(width, width)
            self.norm2 = make_norm("layer", width, affine=False)
            self.mlp = nn.Sequential(
                nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width)
            )

    def project(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, width] to queries, keys and values [B, heads, N, head_dim]."""
        return self.heads(self.qkv(modulate(self.norm1(x), shift, scale)))

    def update(self, x: Tensor, mixed: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        """x [B, N, width] with what attention found and what the MLP makes of it; gate1, shift2, scale2, gate2."""
        gate1, shift2, scale2, gate2 = modulation
        x = torch.addcmul(x, gate1[:, None], self.out(mixed))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class DoubleBlock(nn.Module):
    """One block over both streams, each with weights of its own: (text, image, c) -> (text, image).

    ``last_text``: the text is not read after this block, and comes back as it was.
    """

    def __init__(self, width: int, heads: int, inner: int, *, qk_norm: bool, last_text: bool = False) -> None:
        super().__init__()
        self.text = Stream(width, heads, inner, qk_norm=qk_norm, last=last_text)
        self.image = Stream(width, heads, inner, qk_norm=qk_norm)

    def forward(
        self, text: Tensor, image: Tensor, c: Tensor, rotary: Rotary | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """text [B, L, width], image [B, N, width], c [B, width] after its SiLU, mask [B, 1, 1, L + N] or None."""
        for_text = self.text.modulation(c).chunk(2 if self.text.last else 6, dim=-1)
        for_image = self.image.modulation(c).chunk(6, dim=-1)
        text_q, text_k, text_v = self.text.project(text, *for_text[:2])
        image_q, image_k, image_v = self.image.project(image, *for_image[:2])
        q = image_q if self.text.last else torch.cat([text_q, image_q], dim=2)
        k, v = torch.cat([text_k, image_k], dim=2), torch.cat([text_v, image_v], dim=2)
        mixed = attend(q, k, v, rotary, mask)
        length = text.shape[1]
        if self.text.last:
            return text, self.image.update(image, mixed, for_image[2:])
        text = self.text.update(text, mixed[:, :length], for_text[2:])
        return text, self.image.update(image, mixed[:, length:], for_image[2:])


class SingleBlock(nn.Module):
    """One block over the joint sequence with one set of weights, attention and MLP side by side."""

    def __init__(self, width: int, heads: int, inner: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.widths = [3 * width, inner]
        self.modulation = nn.Linear(width, 3 * width)
        self.norm = make_norm("layer", width, affine=False)
        self.enter = nn.Linear(width, 3 * width + inner)
        self.heads = Heads(heads, width // heads, qk_norm=qk_norm)
        self.act = nn.GELU(approximate="tanh")
        self.leave = nn.Linear(width + inner, width)

    def forward(self, x: Tensor, c: Tensor, rotary: Rotary | None, mask: Tensor | None) -> Tensor:
        """x [B, L + N, width], c [B, width] after its SiLU, mask [B, 1, 1, L + N] or None."""
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        qkv, hidden = self.enter(modulate(self.norm(x), shift, scale)).split(self.widths, dim=-1)
        q, k, v = self.heads(qkv)
        mixed = attend(q, k, v, rotary, mask)
        return torch.addcmul(x, gate[:, None], self.leave(torch.cat([mixed, self.act(hidden)], dim=-1)))


class Head(nn.Module):
    """Tokens back to patches; modulation and projection start at zero, so a fresh network answers zero."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = make_norm("layer", width, affine=False)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


def sincos_axis(count: int, width: int, step: float = 1.0) -> Tensor:
    """Sinusoids of 0, step, 2 step, ...: [count, width] float32, sines first; width must be even."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) * (2 / width))
    phase = (step * torch.arange(count, dtype=torch.float64))[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


class MMDiT(nn.Module):
    """Text-conditional diffusion transformer: ``forward(x, t, text, mask=, pooled=, guidance=)``.

    Images may have any sides that ``patch`` divides and the positions reach; ``size`` is the usual one.

    Args:
        size: usual side of the images, in pixels (of a latent image as a rule).
        channels, patch: the images' channels, and the side of a patch.
        width, heads: width of a token (a multiple of 4 and of ``heads``), number of attention heads.
        double, single: number of blocks of each kind, in this order; ``double`` at least 1.
        mlp_ratio: hidden width of the MLPs over ``width``.
        text_width: width of the text's embeddings.
        pooled_width: width of the pooled text that joins t in the modulation; 0 for none.
        time_dim: number of sinusoids of t, even.
        positions: how image tokens know their places. "sincos": fixed sinusoids are added, half for columns, half for
            rows; "learned": the same as a parameter; "rope": queries and keys are turned, by three positions as FLUX has
            them, (0, row, column) for the image and (0, 0, 0) for text.
        axes: for "rope", how many of a head's dimensions each of the three positions turns; even, in all at most the
            head's (FLUX: 16, 56, 56).
        max_side: for "sincos" and "learned", largest number of patches along a side; smaller images take the middle of that
            grid. Default: what ``size`` has. Sinusoids are spaced so that the whole grid spans ``size / patch`` units.
        qk_norm: normalise queries and keys.
        guidance: the network is told the scale of guidance that was distilled into it, as FLUX.1-dev is.

    Raises:
        ValueError: if a size does not fit, or if an input comes in the wrong shape, is missing or is not wanted.
    """

    table: Tensor | None

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        patch: int = 2,
        width: int = 96,
        heads: int = 4,
        double: int = 4,
        single: int = 0,
        mlp_ratio: float = 4.0,
        text_width: int = 64,
        pooled_width: int = 0,
        time_dim: int = 256,
        positions: Positions = "sincos",
        axes: Sequence[int] | None = None,
        max_side: int | None = None,
        qk_norm: bool = False,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        if patch < 1 or size < 1 or size % patch:
            raise ValueError(f"patch must divide size; got patch={patch} and size={size}")
        if heads < 1 or width < 4 or width % heads or width % 4:
            raise ValueError(
                f"width must be a multiple of 4 and of heads; got width={width} and heads={heads}"
            )
        if min(channels, double, text_width) < 1 or min(single, pooled_width) < 0:
            raise ValueError(
                "channels, double and text_width must be at least 1, single and pooled_width at least 0; got "
                f"{channels}, {double}, {text_width}, {single}, {pooled_width}"
            )
        if time_dim < 2 or time_dim % 2:
            raise ValueError(f"time_dim must be even and at least 2; got {time_dim}")
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {get_args(Positions)}; got {positions!r}")
        if (positions == "rope") != (axes is not None) or (axes is not None and len(axes) != 3):
            raise ValueError(
                f'axes must hold three numbers where positions is "rope", and only there; got {axes} for {positions!r}'
            )
        if max_side is None:
            max_side = size // patch
        if max_side < size // patch:
            raise ValueError(
                f"max_side must be at least the {size // patch} patches along a side of size={size}; got {max_side}"
            )
        self.config: dict[str, Any] = {
            "size": size,
            "channels": channels,
            "patch": patch,
            "width": width,
            "heads": heads,
            "double": double,
            "single": single,
            "mlp_ratio": mlp_ratio,
            "text_width": text_width,
            "pooled_width": pooled_width,
            "time_dim": time_dim,
            "positions": positions,
            "axes": None if axes is None else list(axes),
            "max_side": max_side,
            "qk_norm": qk_norm,
            "guidance": guidance,
        }
        self.shape = (channels, size, size)
        self.num_classes, self.null_class = 0, None
        self.width, self.head_dim, self.patch, self.time_dim = width, width // heads, patch, time_dim
        self.text_width, self.pooled_width, self.max_side = text_width, pooled_width, max_side
        self.axes = None if axes is None else tuple(axes)
        inner = int(width * mlp_ratio)

        self.embed = nn.Linear(channels * patch * patch, width)
        self.embed_text = nn.Linear(text_width, width)
        self.embed_time = embedder(time_dim, width)
        self.embed_pooled = embedder(pooled_width, width) if pooled_width else None
        self.embed_guidance = embedder(time_dim, width) if guidance else None
        self._make_table(positions, size // patch)
        self.double_blocks = nn.ModuleList(
            DoubleBlock(width, heads, inner, qk_norm=qk_norm, last_text=single == 0 and index == double - 1)
            for index in range(double)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(width, heads, inner, qk_norm=qk_norm) for _ in range(single)
        )
        self.head = Head(width, channels * patch * patch)
        if self.axes is not None:
            self.rotary(1, 1, 1, self.embed.weight)  # axes that do not fit the head are refused here
        self._initialise()

    def _make_table(self, positions: Positions, span: int) -> None:
        """``table``: for "sincos" one axis of the grid, [max_side, width / 2]; for "learned" all of it; for "rope" none."""
        axis = sincos_axis(self.max_side, self.width // 2, span / self.max_side)
        if positions == "sincos":
            self.register_buffer("table", axis, persistent=False)
        elif positions == "learned":
            self.table = nn.Parameter(self._grid(axis, self.max_side, self.max_side))
        else:
            self.table = None

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and (name.endswith("modulation") or module is self.head.out):
                nn.init.zeros_(module.weight)

    def _grid(self, axis: Tensor, rows: int, columns: int) -> Tensor:
        """The middle of the grid that ``axis`` [max_side, width / 2] spans: [rows, columns, width], columns' half first."""
        top, left = (self.max_side - rows) // 2, (self.max_side - columns) // 2
        down, along = axis[top : top + rows, None], axis[None, left : left + columns]
        return torch.cat([along.expand(rows, -1, -1), down.expand(-1, columns, -1)], dim=-1)

    def places(self, rows: int, columns: int) -> Tensor | None:
        """What is added to the tokens of rows x columns patches: [rows * columns, width], or None for "rope"."""
        if self.table is None:
            return None
        if self.table.dim() == 2:
            return self._grid(self.table, rows, columns).flatten(0, 1)
        top, left = (self.max_side - rows) // 2, (self.max_side - columns) // 2
        return self.table[top : top + rows, left : left + columns].flatten(0, 1)

    def rotary(self, length: int, rows: int, columns: int, like: Tensor) -> Rotary | None:
        """Cosines and sines [length + rows * columns, head_dim / 2] of text and image tokens; None without "rope".

        On ``like``'s device, in float32, or in float64 where ``like`` is.
        """
        if self.axes is None:
            return None
        text = torch.zeros(length, 3, dtype=torch.float64, device=like.device)
        places = torch.cat([text, grid_positions(1, rows, columns, device=like.device)])
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return rotary_table(places, self.head_dim, split=self.axes, dtype=dtype)

    def patchify(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> tokens [B, N, C * patch * patch], row by row."""
        p = self.patch
        grid = x.unflatten(-1, (-1, p)).unflatten(-3, (-1, p)).permute(0, 2, 4, 1, 3, 5)
        return grid.flatten(3).flatten(1, 2)

    def unpatchify(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse of ``patchify`` for an image of rows x columns patches."""
        p = self.patch
        grid = tokens.reshape(-1, rows, columns, self.shape[0], p, p).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(-1, self.shape[0], rows * p, columns * p)

    def time_steer(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedded times: t [B] -> [B, width] of ``dtype``."""
        steer: Tensor = self.embed_time(timestep_embedding(t, self.time_dim).to(dtype))
        return steer

    def condition_steer(
        self, pooled: Tensor | None, guidance: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """The embedded pooled text and guidance scale, summed: [B, width]; None for a network without either."""
        steer = None
        if self.embed_pooled is not None and pooled is not None:
            steer = self.embed_pooled(pooled.to(dtype))
        if self.embed_guidance is not None and guidance is not None:
            scale = self.embed_guidance(timestep_embedding(guidance, self.time_dim).to(dtype))
            steer = scale if steer is None else steer + scale
        return steer

    def read_text(self, text: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The text's tokens as blocks take them: [B, L, width] of ``dtype``."""
        text = text.to(dtype)
        if mask is not None:
            text = text.masked_fill(~mask[..., None], 0.0)  # not even NaN gets from a masked token into a sum
        tokens: Tensor = self.embed_text(text)
        return tokens

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The answer at x, in its shape and dtype.

        Args:
            x: [B, C, H, W].
            t: [B]; sinusoids of 1000 t are taken, so [0, 1] is its range.
            text: [B, L, text_width].
            mask: [B, L] bool, True at real tokens; the others take no part, whatever they hold. None: all are real.
            pooled: [B, pooled_width], for a network built with it.
            guidance: [B], for a network built with it: the scale it shall imitate (FLUX.1-dev: 3.5 as a rule).
        """
        self.check_points(x)
        self.check_conditions(x.shape[0], text, mask, pooled, guidance)
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        length = text.shape[1]
        text = self.read_text(text, mask, x.dtype)
        keep: Tensor | None = None
        if mask is not None:
            seen = F.pad(mask, (0, rows * columns), value=True)
            keep = seen[:, None, None, :]
        image = self.embed(self.patchify(x))
        if (places := self.places(rows, columns)) is not None:
            image = image + places
        c = self.time_steer(t, x.dtype)
        if (steer := self.condition_steer(pooled, guidance, x.dtype)) is not None:
            c = c + steer
        c = F.silu(c)  # what modulates every block
        rotary = self.rotary(length, rows, columns, x)
        for block in self.double_blocks:
            text, image = block(text, image, c, rotary, keep)
        if len(self.single_blocks):
            joint = torch.cat([text, image], dim=1)
            for block in self.single_blocks:
                joint = block(joint, c, rotary, keep)
            image = joint[:, length:]
        return self.unpatchify(self.head(image, c), rows, columns)

    def check_points(self, x: Tensor) -> None:
        """ValueError unless x has the network's channels, and sides that ``patch`` divides and positions reach."""
        if x.dim() != 4 or x.shape[1] != self.shape[0] or x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"x must be [B, {self.shape[0]}, H, W] with H and W multiples of {self.patch}; got {list(x.shape)}"
            )
        if self.table is not None and max(x.shape[2:]) > self.max_side * self.patch:
            raise ValueError(
                f"x must have sides of at most {self.max_side * self.patch}, as positions reach; got {list(x.shape)}"
            )

    def check_conditions(
        self,
        batch: int,
        text: Tensor,
        mask: Tensor | None,
        pooled: Tensor | None,
        guidance: Tensor | None,
    ) -> None:
        """ValueError unless the conditions are those of ``batch`` samples that the network was built for."""
        if text.dim() != 3 or text.shape[0] != batch or text.shape[2] != self.text_width:
            raise ValueError(f"text must be [{batch}, L, {self.text_width}]; got {list(text.shape)}")
        if mask is not None and (mask.shape != text.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be {list(text.shape[:2])} of bool; got {list(mask.shape)} of {mask.dtype}"
            )
        _check_optional("pooled", pooled, (batch, self.pooled_width), wanted=self.embed_pooled is not None)
        _check_optional("guidance", guidance, (batch,), wanted=self.embed_guidance is not None)


def _check_optional(name: str, value: Tensor | None, shape: tuple[int, ...], *, wanted: bool) -> None:
    """ValueError unless the value is there exactly if the network was built for it, in the right shape."""
    if not wanted:
        if value is not None:
            raise ValueError(f"{name} was given to an MMDiT that was built without it")
    elif value is None or value.shape != shape:
        got = "None" if value is None else list(value.shape)
        raise ValueError(f"{name} must be {list(shape)}; got {got}")
