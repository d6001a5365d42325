"""What stands between the matrix products of a transformer block: norm with modulation, gated residuals, GELU and SwiGLU.

Each is one pass over memory; csrc/core/block.hpp says what is computed. adaLN (Peebles & Xie 2023, DiT) makes shift, scale and
gate [B, C] of the condition; they are read where they lie, a chunk of a [B, 6 C] projection as it is. Arithmetic is in float32
(float64 for float64) whatever the dtype, with one rounding at the end. A row's statistics do not depend on its batch: results
are the same bits in any batch and at any number of threads.

Functions that end in an underscore write x in place and have no gradient; the others have one in every tensor.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _library
from . import _block_gradient, _plain_block
from .combine import mark_written

Norm = Literal["layer", "rms"]

_NORM = "Tensor? shift, Tensor? scale, Tensor? weight, Tensor? bias, bool rms, float eps"
_RESIDUAL = "Tensor y, Tensor? gate, Tensor? y_bias"
_library.define(f"norm_modulate(Tensor x, {_NORM}) -> Tensor")
_library.define(f"gate_residual(Tensor x, {_RESIDUAL}) -> Tensor")
_library.define(f"gate_residual_(Tensor(a!) x, {_RESIDUAL}) -> ()")
_library.define(f"gate_residual_norm(Tensor x, {_RESIDUAL}, {_NORM}) -> (Tensor, Tensor)")
_library.define(f"gate_residual_norm_(Tensor(a!) x, {_RESIDUAL}, {_NORM}) -> Tensor")
_library.define("swiglu(Tensor x, Tensor? bias) -> Tensor")
_library.define("gelu(Tensor x, Tensor? bias, bool tanh) -> Tensor")
_library.define("gelu_(Tensor(a!) x, Tensor? bias, bool tanh) -> ()")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ops = torch.ops.pyflowcore


def _check(x: Tensor, dims: int, *others: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
    """x has at least ``dims`` dimensions; the others have x's dtype and device and the shapes beside them."""
    if x.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype}, allowed are float32, float64, bfloat16 and float16")
    if x.dim() < dims:
        raise ValueError(f"x must have {dims} dimensions or more, got shape {list(x.shape)}")
    for name, tensor, shape in others:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, allowed is {list(shape)} for x of {list(x.shape)}"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}; they must agree")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")


def _check_norm(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float
) -> bool:  # fmt: skip
    """Whether it is RMS."""
    if kind not in ("layer", "rms"):
        raise ValueError(f"kind is {kind!r}, allowed are 'layer' and 'rms'")
    if not (eps >= 0.0 and math.isfinite(eps)):
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    by_sample, by_channel = (x.shape[0], x.shape[-1]) if x.dim() else (), x.shape[-1:]
    _check(
        x, 2, ("shift", shift, by_sample), ("scale", scale, by_sample), ("weight", weight, by_channel),
        ("bias", bias, by_channel),
    )  # fmt: skip
    return kind == "rms"


def _check_residual(x: Tensor, y: Tensor, gate: Tensor | None, y_bias: Tensor | None) -> None:
    by_sample = (x.shape[0], x.shape[-1]) if x.dim() else ()
    _check(x, 2, ("y", y, x.shape), ("gate", gate, by_sample), ("y_bias", y_bias, x.shape[-1:]))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses between which a tensor's elements lie."""
    first = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()


def _check_in_place(x: Tensor, y: Tensor | None, **read: Tensor | None) -> None:
    """x can be written: nothing needs a gradient, x is contiguous and shares no memory with what is read; y may be x itself."""
    if _needs_gradient(x, y, *read.values()):
        raise ValueError(
            "x is written and no argument may require a gradient: the function without the underscore has one"
        )
    if not x.is_contiguous():
        raise ValueError(f"x is written and must be contiguous, got strides {tuple(x.stride())}")
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type == "meta" or not x.numel():
        return  # no addresses to look at
    begin, end = _span(x)
    for name, tensor in (("y", y), *read.items()):
        if tensor is None:
            continue
        first, last = _span(tensor)
        if first >= end or begin >= last:
            continue
        if tensor is y and first == begin and y.stride() == x.stride():
            continue
        shared = min(end, last) - max(begin, first)
        raise ValueError(f"{name} is read and x is written, and they overlap in memory by {shared} bytes")


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def norm_modulate(
    x: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    kind: Norm = "layer",
    eps: float = 1e-6,
) -> Tensor:
    """(norm(x) weight + bias) (1 + scale) + shift, in one pass over x.

    Args:
        x: [B, ..., C]: float32, float64, bfloat16 or float16. Copied first if it is not contiguous.
        shift, scale: [B, C], one row for each sample, of x's dtype; a view whose rows are contiguous is read as it lies (a
            chunk of a projection; one row expanded to all samples). None: not applied.
        weight, bias: [C], of x's dtype; None: not applied.
        kind: "layer", (x - mean) / sqrt(variance + eps), the variance over C (Ba et al. 2016); or "rms",
            x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019).
        eps: added to the variance.

    Returns:
        [B, ..., C], contiguous.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not agree, an unknown kind, an eps that is negative or not
            finite.
    """
    rms = _check_norm(x, shift, scale, weight, bias, kind, eps)
    arguments = (x, shift, scale, weight, bias, rms, eps)
    if _needs_gradient(x, shift, scale, weight, bias):
        return _block_gradient.NormModulate.apply(*arguments)  # type: ignore[no-untyped-call]
    return _ops.norm_modulate(*arguments)


def gate_residual(
    x: Tensor, y: Tensor, gate: Tensor | None = None, *, y_bias: Tensor | None = None
) -> Tensor:
    """x + gate (y + y_bias): a branch's result joins the residual stream.

    Args:
        x: [B, ..., C]: float32, float64, bfloat16 or float16.
        y: as x: what the branch's last product gave.
        gate: [B, C], read as ``shift`` of :func:`norm_modulate`; None: 1. A LayerScale [C] is ``gamma.expand(B, C)``.
        y_bias: [C], the bias of the branch's last product, so that the product can be one without; None: 0.

    Returns:
        [B, ..., C], contiguous.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not agree.
    """
    _check_residual(x, y, gate, y_bias)
    if _needs_gradient(x, y, gate, y_bias):
        return _block_gradient.GateResidual.apply(x, y, gate, y_bias)  # type: ignore[no-untyped-call]
    return _ops.gate_residual(x, y, gate, y_bias)


def gate_residual_(
    x: Tensor, y: Tensor, gate: Tensor | None = None, *, y_bias: Tensor | None = None
) -> Tensor:
    """:func:`gate_residual` into x, which is returned; no gradient.

    x must be contiguous and share no memory with what is read, but y may be x itself; nothing may require a gradient.
    """
    _check_residual(x, y, gate, y_bias)
    _check_in_place(x, y, gate=gate, y_bias=y_bias)
    _ops.gate_residual_(x, y, gate, y_bias)
    mark_written(x)
    return x


def gate_residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    y_bias: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    kind: Norm = "layer",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """:func:`gate_residual`, and :func:`norm_modulate` of its result, in one pass: the bits of one after the other.

    Returns:
        (the new x, its modulated norm), both [B, ..., C] and contiguous.
    """
    _check_residual(x, y, gate, y_bias)
    rms = _check_norm(x, shift, scale, weight, bias, kind, eps)
    arguments = (x, y, gate, y_bias, shift, scale, weight, bias, rms, eps)
    if _needs_gradient(x, y, gate, y_bias, shift, scale, weight, bias):
        return _block_gradient.GateResidualNorm.apply(*arguments)  # type: ignore[no-untyped-call]
    return _ops.gate_residual_norm(*arguments)


def gate_residual_norm_(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    y_bias: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    kind: Norm = "layer",
    eps: float = 1e-6,
) -> Tensor:
    """:func:`gate_residual_norm` with the new x in x; returns the modulated norm. Conditions as for :func:`gate_residual_`."""
    _check_residual(x, y, gate, y_bias)
    rms = _check_norm(x, shift, scale, weight, bias, kind, eps)
    _check_in_place(x, y, gate=gate, y_bias=y_bias, shift=shift, scale=scale, weight=weight, bias=bias)
    result: Tensor = _ops.gate_residual_norm_(x, y, gate, y_bias, shift, scale, weight, bias, rms, eps)
    mark_written(x)
    return result


def swiglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(x[..., :F] + bias[:F]) (x[..., F:] + bias[F:]) (Shazeer 2020).

    Args:
        x: [..., 2 F]: float32, float64, bfloat16 or float16: both halves of the product side by side.
        bias: [2 F], of x's dtype; None: 0.

    Returns:
        [..., F], contiguous.

    Raises:
        TypeError, ValueError: a last dimension that is odd; shapes, dtypes or devices that do not agree.
    """
    _check(x, 1, ("bias", bias, x.shape[-1:]))
    if x.shape[-1] % 2:
        raise ValueError(f"x has shape {list(x.shape)}, its last dimension must be even")
    if _needs_gradient(x, bias):
        return _block_gradient.SwiGLU.apply(x, bias)  # type: ignore[no-untyped-call]
    return _ops.swiglu(x, bias)


def _is_tanh(approximate: str) -> bool:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}, allowed are 'none' and 'tanh'")
    return approximate == "tanh"


def gelu(x: Tensor, bias: Tensor | None = None, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """GELU of x + bias: z Phi(z), or by tanh, z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) (Hendrycks & Gimpel 2016).

    Args:
        x: [..., C]: float32, float64, bfloat16 or float16.
        bias: [C], of x's dtype; None: 0.
        approximate: "none" or "tanh", as in torch.

    Returns:
        [..., C], contiguous. float32 is within 4.6 ulp (tanh 2.4) where the instruction set has a fused multiply-add, and
        within 2 ulp where it has none and float64 is used; half precision within 0.53 ulp of its own.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not agree; another ``approximate``.
    """
    tanh = _is_tanh(approximate)
    _check(x, 1, ("bias", bias, x.shape[-1:]))
    if _needs_gradient(x, bias):
        return _block_gradient.GELU.apply(x, bias, tanh)  # type: ignore[no-untyped-call]
    return _ops.gelu(x, bias, tanh)


def gelu_(x: Tensor, bias: Tensor | None = None, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """:func:`gelu` into x, which is returned; no gradient. x must be contiguous and share no memory with the bias."""
    tanh = _is_tanh(approximate)
    _check(x, 1, ("bias", bias, x.shape[-1:]))
    _check_in_place(x, None, bias=bias)
    _ops.gelu_(x, bias, tanh)
    mark_written(x)
    return x


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake(name: str) -> Any:
    return torch.library.register_fake(f"pyflowcore::{name}", lib=_library.definitions)


@_fake("norm_modulate")
@_fake("gate_residual")
@_fake("gelu")
def _fake_like(x: Tensor, *args: Any) -> Tensor:
    return _like(x)


@_fake("gate_residual_")
@_fake("gelu_")
def _fake_nothing(*args: Any) -> None:
    return None


@_fake("gate_residual_norm")
def _fake_pair(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _like(x), _like(x)


@_fake("gate_residual_norm_")
def _fake_norm(x: Tensor, *args: Any) -> Tensor:
    return _like(x)


@_fake("swiglu")
def _fake_half(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)


def register() -> None:
    """The plain versions, for every backend that has no kernels of its own."""
    for operator in _plain_block.OPERATORS:
        _library.definitions.impl(operator.__name__, operator, "CompositeExplicitAutograd")
