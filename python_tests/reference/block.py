"""The operators of transformer blocks in NumPy float64, as their formulas read."""

from __future__ import annotations

import numpy as np
from scipy import special

Array = np.ndarray


def by_token(rows: Array, x: Array) -> Array:
    return rows.reshape(rows.shape[0], *[1] * (x.ndim - 2), rows.shape[1])


def norm_modulate(
    x: Array, shift: Array | None, scale: Array | None, weight: Array | None, bias: Array | None, kind: str, eps: float
) -> Array:  # fmt: skip
    if not x.size:
        return x
    wide = x.astype(np.longdouble)  # the mean of a float64 row is no float64
    if kind == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    h = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)).astype(np.float64)
    if weight is not None:
        h = h * weight
    if bias is not None:
        h = h + bias
    if scale is not None:
        h = h * (1 + by_token(scale, h))
    return h if shift is None else h + by_token(shift, h)


def gate_residual(x: Array, y: Array, gate: Array | None, y_bias: Array | None) -> Array:
    y = y if y_bias is None else y + y_bias
    return x + (y if gate is None else by_token(gate, x) * y)


def swiglu(x: Array, bias: Array | None) -> Array:
    first, second = np.split(x if bias is None else x + bias, 2, -1)
    return first * special.expit(first) * second


def gelu(x: Array, bias: Array | None, approximate: str) -> Array:
    z = x if bias is None else x + bias
    if approximate == "none":
        return z * special.ndtr(z)
    return z * special.expit(2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))
