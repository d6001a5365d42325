"""The operators on tokens and feature maps in float64 NumPy, by loops where loops say it best."""

from __future__ import annotations

import numpy as np


def norm_of(x, kind, eps, weight=None, shift=None):
    """RMS norm or layer norm over the last axis."""
    if kind == "none":
        return x
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    x = x if weight is None else x * weight
    return x if shift is None else x + shift


def turned(x, cos, sin, pairs):
    """x [B, H, N, D] turned pair by pair as complex numbers where the table has a column for each pair."""
    out = np.empty_like(x)
    half = x.shape[-1] // 2
    cos, sin = (np.broadcast_to(t, (x.shape[0], *t.shape[-2:])) for t in (cos, sin))
    for k in range(half):
        first, second = (2 * k, 2 * k + 1) if pairs == "adjacent" else (k, k + half)
        one, two = (k, k) if cos.shape[-1] == half else (first, second)
        a, b = x[..., first], x[..., second]
        out[..., first] = a * cos[:, None, :, one] - b * sin[:, None, :, one]
        out[..., second] = b * cos[:, None, :, two] + a * sin[:, None, :, two]
    return out


def qk_norm_rope(
    qkv, heads, kv_heads, bias=None, norm="none", q_weight=None, k_weight=None, q_shift=None, k_shift=None, eps=1e-6,
    cos=None, sin=None, pairs="adjacent",
):  # fmt: skip
    """q, k, v from one product."""
    x = qkv if bias is None else qkv + bias
    batch, tokens, width = x.shape
    parts = heads + 2 * kv_heads
    x = x.reshape(batch, tokens, parts, width // parts).transpose(0, 2, 1, 3)
    q, k, v = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
    q, k = norm_of(q, norm, eps, q_weight, q_shift), norm_of(k, norm, eps, k_weight, k_shift)
    if cos is not None:
        q, k = turned(q, cos, sin, pairs), turned(k, cos, sin, pairs)
    return q, k, v


def group_norm_silu(x, groups, weight=None, bias=None, scale=None, shift=None, eps=1e-5, silu=True):
    """silu((norm(x) weight + bias) (1 + scale) + shift)."""
    if not x.size:
        return x

    def shaped(value):
        return value.reshape(*value.shape, *[1] * (x.ndim - 2))

    flat = x.reshape(x.shape[0], groups, -1)
    centred = flat - flat.mean(-1, keepdims=True)
    h = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)).reshape(x.shape)
    h = h if weight is None else h * shaped(weight)
    h = h if bias is None else h + shaped(bias)
    h = h if scale is None else h * (1 + shaped(scale))
    h = h if shift is None else h + shaped(shift)
    return h / (1 + np.exp(-h)) if silu else h
