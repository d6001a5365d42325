"""The parts that transformers share, each a product of PyTorch's and a fused operator that takes what the product leaves."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models.dit import Attention
from ..models.feedforward import SwiGLU
from .products import Products

__all__ = ["attended", "gated_into", "hidden", "modulated"]

AnyNorm = nn.LayerNorm | nn.RMSNorm


def norm_arguments(norm: AnyNorm) -> dict[str, Any]:
    """A norm as the operators name it."""
    layer = isinstance(norm, nn.LayerNorm)
    return {
        "kind": "layer" if layer else "rms",
        "eps": norm.eps,
        "weight": norm.weight,
        "bias": norm.bias if layer else None,
    }


def modulated(x: Tensor, norm: AnyNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift."""
    return ops.norm_modulate(x, shift, scale, **norm_arguments(norm))


def gated_into(
    products: Products,
    x: Tensor,
    inner: Tensor,
    out: nn.Linear,
    gate: Tensor,
    norm: AnyNorm,
    shift: Tensor,
    scale: Tensor,
) -> Tensor:
    """x += gate out(inner), in place; the answer is norm(x) (1 + scale) + shift, what the next half begins with."""
    return ops.gate_residual_norm_(
        x, products(out, inner), gate, shift, scale, y_bias=out.bias, **norm_arguments(norm)
    )


def attended(
    products: Products, attention: Attention, h: Tensor, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """What attention finds, before its projection: [B, N, width]."""
    q, k, v = ops.qk_norm_rope(
        products(attention.qkv, h),
        attention.heads,
        bias=attention.qkv.bias,
        cos=cos,
        sin=sin,
        **({} if isinstance(attention.q_norm, nn.Identity) else qk_norm_arguments(attention)),
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def qk_norm_arguments(attention: Attention) -> dict[str, Any]:
    """The norms of queries and keys as the operator names them."""
    q_norm, k_norm = attention.q_norm, attention.k_norm
    assert isinstance(q_norm, (nn.LayerNorm, nn.RMSNorm)) and isinstance(k_norm, (nn.LayerNorm, nn.RMSNorm))
    q, k = norm_arguments(q_norm), norm_arguments(k_norm)
    found = {"norm": q["kind"], "eps": q["eps"], "q_weight": q["weight"], "k_weight": k["weight"]}
    if q["bias"] is not None:
        found |= {"q_shift": q["bias"], "k_shift": k["bias"]}
    return found


def hidden(products: Products, mlp: nn.Module, h: Tensor) -> tuple[Tensor, nn.Linear]:
    """An MLP up to its last product: (the hidden activations, the last layer)."""
    if isinstance(mlp, SwiGLU):
        return ops.swiglu(products(mlp.inner, h), mlp.inner.bias), mlp.out
    assert isinstance(mlp, nn.Sequential)
    first, activation, last = mlp
    assert isinstance(first, nn.Linear) and isinstance(activation, nn.GELU) and isinstance(last, nn.Linear)
    product = products(first, h)
    form: Literal["none", "tanh"] = "tanh" if activation.approximate == "tanh" else "none"
    return ops.gelu_(product, first.bias, approximate=form), last
