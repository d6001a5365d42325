"""The operators on tokens and feature maps in plain PyTorch, for devices without compiled kernels; differentiable.

The arithmetic is in float32, or float64 for float64 storage, and rounded once, as in the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from ._plain import _say

NORMS = ("none", "rms", "layer")


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


# ----------------------------------------------------------------------------------------------------- qk_norm_rope
def partners(x: Tensor, adjacent: bool) -> Tensor:
    """[..., D]: in place of each dimension the one that turns with it, with the sign of its sine."""
    if adjacent:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((-second, first), -1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), -1)


def spread(table: Tensor, head: int, adjacent: bool, like: Tensor) -> Tensor:
    """A table [(B,) N, D or D / 2] as [(B,) 1, N, D]: a column for each dimension of a head, the same for every head."""
    table = table.to(like.dtype)
    if table.shape[-1] != head:
        table = torch.stack((table, table), -1).flatten(-2) if adjacent else torch.cat((table, table), dim=-1)
    return table.unsqueeze(-3)


def normalise(x: Tensor, norm: int, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised vectors and the factor that did it."""
    if norm == 2:
        x = x - x.mean(-1, keepdim=True)
    inverse = 1.0 / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * inverse, inverse


def heads_of(qkv: Tensor, heads: int, kv_heads: int, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, (H + 2 Hkv) D] as q [B, H, N, D] and k, v [B, Hkv, N, D], with the bias, in the dtype of computation."""
    compute = compute_dtype(qkv)
    wide = qkv.to(compute)
    if bias is not None:
        wide = wide + bias.to(compute)
    split = wide.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2)
    q, k, v = split.split([heads, kv_heads, kv_heads], dim=1)
    return q, k, v


def qk_norm_rope(
    qkv: Tensor, heads: int, kv_heads: int, bias: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None,
    q_shift: Tensor | None, k_shift: Tensor | None, norm: int, eps: float, cos: Tensor | None, sin: Tensor | None,
    adjacent: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _say(qkv, "qk_norm_rope")
    q, k, v = heads_of(qkv, heads, kv_heads, bias)
    turned = []
    for x, weight, shift in ((q, q_weight, q_shift), (k, k_weight, k_shift)):
        if norm:
            x, _ = normalise(x, norm, eps)
            x = x if weight is None else x * weight.to(x.dtype)
            x = x if shift is None else x + shift.to(x.dtype)
        if cos is not None and sin is not None:
            cosine, sine = (spread(table, x.shape[-1], adjacent, x) for table in (cos, sin))
            x = x * cosine + partners(x, adjacent) * sine
        turned.append(x)
    # New memory for each: v would otherwise be a view of qkv.
    first, second, third = (
        x.to(qkv.dtype, memory_format=torch.contiguous_format, copy=True) for x in (*turned, v)
    )
    return first, second, third


def qk_norm_rope_(
    qkv: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, bias: Tensor | None, q_weight: Tensor | None,
    k_weight: Tensor | None, q_shift: Tensor | None, k_shift: Tensor | None, norm: int, eps: float, cos: Tensor | None,
    sin: Tensor | None, adjacent: bool, q_offset: int, kv_offset: int,
) -> None:  # fmt: skip
    made = qk_norm_rope(
        qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, norm, eps, cos, sin, adjacent
    )
    tokens = qkv.shape[1]
    for buffer, value, offset in zip((q, k, v), made, (q_offset, kv_offset, kv_offset), strict=True):
        buffer[:, :, offset : offset + tokens].copy_(value)


# -------------------------------------------------------------------------------------------------- group_norm_silu
def per_channel(value: Tensor, like: Tensor) -> Tensor:
    """[C] or [B, C] in the shape and dtype that multiply ``like`` [B, C, ...]."""
    return value.to(like.dtype).reshape(*value.shape, *[1] * (like.dim() - 2))


def grouped(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """x [B, C, ...] normalised over its groups, of the same shape, and the inverse deviations [B, G, 1]."""
    flat = x.reshape(x.shape[0], groups, -1)
    centred = flat - flat.mean(-1, keepdim=True)
    inverse = 1.0 / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * inverse).reshape(x.shape), inverse


def modulated(
    normal: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(normal weight + bias) before the modulation, and after it."""
    own = normal if weight is None else normal * per_channel(weight, normal)
    own = own if bias is None else own + per_channel(bias, normal)
    h = own if scale is None else own * (1.0 + per_channel(scale, normal))
    return own, h if shift is None else h + per_channel(shift, normal)


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    eps: float, silu: bool,
) -> Tensor:  # fmt: skip
    _say(x, "group_norm_silu")
    if not x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    normal, _ = grouped(x.to(compute_dtype(x)), groups, eps)
    _, h = modulated(normal, weight, bias, scale, shift)
    return (torch.nn.functional.silu(h) if silu else h).to(x.dtype).contiguous()


def group_norm_silu_(
    x: Tensor, out: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, eps: float, silu: bool,
) -> None:  # fmt: skip
    out.copy_(group_norm_silu(x, groups, weight, bias, scale, shift, eps, silu))


# ------------------------------------------------------------------------------------------------ timestep_features
def timestep_features(
    t: Tensor, width: int, scale: float, period: float, last: float, sine_first: bool, dtype: torch.dtype
) -> Tensor:
    _say(t, "timestep_features")
    return sinusoids(t, width, scale, period, last, sine_first, dtype)


def sinusoids(
    t: Tensor, width: int, scale: float, period: float, last: float, sine_first: bool, dtype: torch.dtype
) -> Tensor:
    """Differentiable in t. Where a device has no float64 the phases are float32."""
    half = width // 2
    wide = torch.float32 if t.device.type == "mps" else torch.float64
    exponents = torch.arange(half, dtype=wide, device=t.device) / (half - last)
    phase = (scale * t.to(wide))[:, None] * period**-exponents
    parts = (phase.sin(), phase.cos()) if sine_first else (phase.cos(), phase.sin())
    return torch.cat(parts, dim=-1).to(dtype)


# ---------------------------------------------------------------------------------------------------------- patches
def patchify_(x: Tensor, out: Tensor, high: int, wide: int, channels_first: bool) -> None:
    _say(x, "patchify")
    batch, channels, height, width = x.shape
    grid = x.reshape(batch, channels, height // high, high, width // wide, wide)
    out.copy_(grid.permute((0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)).reshape(out.shape))


def unpatchify_(tokens: Tensor, out: Tensor, high: int, wide: int, channels_first: bool) -> None:
    _say(tokens, "unpatchify")
    batch, channels, height, width = out.shape
    rows, columns = height // high, width // wide
    inside = (channels, high, wide) if channels_first else (high, wide, channels)
    grid = tokens.reshape(batch, rows, columns, *inside)
    out.copy_(grid.permute((0, 3, 1, 4, 2, 5) if channels_first else (0, 5, 1, 3, 2, 4)).reshape(out.shape))


def register() -> None:
    """Serves every backend that has no kernels of its own."""
    for operator in (
        qk_norm_rope,
        qk_norm_rope_,
        group_norm_silu,
        group_norm_silu_,
        timestep_features,
        patchify_,
        unpatchify_,
    ):
        _library.definitions.impl(operator.__name__, operator, "CompositeExplicitAutograd")
