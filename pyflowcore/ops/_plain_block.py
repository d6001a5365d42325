"""The operators of transformer blocks in plain PyTorch: for devices without kernels, and what their gradients are made of.

Arithmetic in float32, or in float64 for float64, and one rounding at the end, as in ``csrc/core/block.hpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _plain


def widened(value: Tensor) -> Tensor:
    """In the dtype that is computed in."""
    return value if value.dtype == torch.float64 else value.float()


def by_token(rows: Tensor, x: Tensor) -> Tensor:
    """[B, C] in the shape that multiplies x [B, ..., C]."""
    return widened(rows).reshape(rows.shape[0], *[1] * (x.dim() - 2), rows.shape[1])


def normed(x: Tensor, rms: bool, eps: float) -> tuple[Tensor, Tensor]:
    """norm(x) and 1 / sqrt(variance + eps) [..., 1], both widened. The mean is taken twice: float32 cannot hold that of a row
    whose spread is a thousandth of it."""
    x = widened(x)
    if not rms:
        x = x - x.mean(-1, keepdim=True)
        x = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * rstd, rstd


def affine(n: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        n = n * widened(weight)
    return n if bias is None else n + widened(bias)


def modulated(h: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    if scale is not None:
        h = h * (1 + by_token(scale, h))
    return h if shift is None else h + by_token(shift, h)


def moved(x: Tensor, y: Tensor, gate: Tensor | None, y_bias: Tensor | None) -> Tensor:
    """x + gate (y + y_bias), widened."""
    y = widened(y) if y_bias is None else widened(y) + widened(y_bias)
    return widened(x) + (y if gate is None else by_token(gate, x) * y)


def norm_modulate(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, rms: bool, eps: float,
) -> Tensor:  # fmt: skip
    _plain._say(x, "norm_modulate")
    return modulated(affine(normed(x, rms, eps)[0], weight, bias), shift, scale).to(x.dtype).contiguous()


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None, y_bias: Tensor | None) -> Tensor:
    _plain._say(x, "gate_residual")
    return moved(x, y, gate, y_bias).to(x.dtype).contiguous()


def gate_residual_(x: Tensor, y: Tensor, gate: Tensor | None, y_bias: Tensor | None) -> None:
    x.copy_(gate_residual(x, y, gate, y_bias))


def gate_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, y_bias: Tensor | None, shift: Tensor | None, scale: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, rms: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    new = gate_residual(x, y, gate, y_bias)
    return new, norm_modulate(new, shift, scale, weight, bias, rms, eps)


def gate_residual_norm_(
    x: Tensor, y: Tensor, gate: Tensor | None, y_bias: Tensor | None, shift: Tensor | None, scale: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, rms: bool, eps: float,
) -> Tensor:  # fmt: skip
    gate_residual_(x, y, gate, y_bias)
    return norm_modulate(x, shift, scale, weight, bias, rms, eps)


def biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return widened(x) if bias is None else widened(x) + widened(bias)


def swiglu(x: Tensor, bias: Tensor | None) -> Tensor:
    _plain._say(x, "swiglu")
    first, second = biased(x, bias).chunk(2, -1)
    return (F.silu(first) * second).to(x.dtype).contiguous()


def gelu(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    _plain._say(x, "gelu")
    return F.gelu(biased(x, bias), approximate="tanh" if tanh else "none").to(x.dtype).contiguous()


def gelu_(x: Tensor, bias: Tensor | None, tanh: bool) -> None:
    x.copy_(gelu(x, bias, tanh))


OPERATORS = (
    norm_modulate, gate_residual, gate_residual_, gate_residual_norm, gate_residual_norm_, swiglu, gelu, gelu_,
)  # fmt: skip
