"""group_norm_silu: group norm, its scale and shift, a modulation per sample and SiLU in one pass over a feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ._plain_tokens import compute_dtype, grouped, modulated, per_channel
from .combine import _check_overlap, mark_written

_OPTIONS = "int groups, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, float eps, bool silu"
_library.define(f"group_norm_silu(Tensor x, {_OPTIONS}) -> Tensor")
_library.define(f"group_norm_silu_(Tensor x, Tensor(a!) out, {_OPTIONS}) -> ()")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> None:
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x must be [B, C, ...], got {list(x.shape)}")
    batch, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dims and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
            raise ValueError(
                f"x is in {str(layout).removeprefix('torch.')}: group_norm_silu reads whole channels; call .contiguous() before"
            )
    pairs: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("scale", scale, (batch, channels)),
        ("shift", shift, (batch, channels)),
    )
    for name, tensor, shape in pairs:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must be {list(shape)} for an x of {list(x.shape)}, got {list(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
    for first, second, names in ((weight, bias, "weight and bias"), (scale, shift, "scale and shift")):
        if first is not None and second is not None and first.dtype != second.dtype:
            raise TypeError(f"{names} must have one dtype, got {first.dtype} and {second.dtype}")


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """silu((norm(x) weight + bias) (1 + scale) + shift), norm over each group of channels (Wu & He 2018; ADM's residual blocks:
    Dhariwal & Nichol 2021, section 3).

    Sums are float64 and in a fixed order, of what is left of x after the first element of its group is taken off: accurate
    also where the mean is thousands of deviations away, and the same bits in any batch and at any number of threads. The rest
    is float32 (float64 for float64), rounded once.

    Args:
        x: [B, C, ...] in any float dtype. What is not contiguous is copied first; channels_last is refused, because its
            copies would cost more than the pass.
        groups: a divisor of C.
        weight, bias: [C], or None.
        scale, shift: [B, C], or None: the modulation of each sample.
        eps: added to the variance under the root.
        silu: False leaves the activation out.

    Returns:
        A new contiguous tensor of x's shape and dtype. Differentiable in x, weight, bias, scale and shift.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    _check(x, groups, weight, bias, scale, shift)
    learns = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, weight, bias, scale, shift)
    )
    if learns or torch.compiler.is_compiling() or type(x) is not Tensor:
        return torch.ops.pyflowcore.group_norm_silu(x, groups, weight, bias, scale, shift, eps, silu)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.ops.pyflowcore.group_norm_silu_(x, out, groups, weight, bias, scale, shift, eps, silu)
    return out


def group_norm_silu_(
    x: Tensor,
    out: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> None:
    """:func:`group_norm_silu` into ``out``, contiguous, of x's shape and dtype, which may be x itself. No gradient.

    Raises:
        TypeError, ValueError: as :func:`group_norm_silu`; ValueError where out has another shape or layout, requires a
            gradient, or shares memory with anything but x, or with a part of it.
    """
    _check(x, groups, weight, bias, scale, shift)
    if out.shape != x.shape:
        raise ValueError(f"out has shape {list(out.shape)}, x has {list(x.shape)}")
    if out.dtype != x.dtype:
        raise TypeError(f"out is {out.dtype}, x is {x.dtype}; they must agree")
    if out.device != x.device:
        raise ValueError(f"out is on {out.device}, x is on {x.device}")
    if not out.is_contiguous():
        raise ValueError(f"out is written and must be contiguous, got strides {tuple(out.stride())}")
    if torch.is_grad_enabled() and out.requires_grad:
        raise ValueError("out is written and must not require a gradient: group_norm_silu has one")
    read = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    if not torch.compiler.is_compiling() and not (type(x) is Tensor and x.data_ptr() == out.data_ptr()):
        read["x"] = x
    _check_overlap(x, {"out": out}, read, in_place=False)
    torch.ops.pyflowcore.group_norm_silu_(x, out, groups, weight, bias, scale, shift, eps, silu)
    mark_written(out)


@torch.library.register_fake("pyflowcore::group_norm_silu_", lib=_library.definitions)
def _fake_in_place(*args: Any) -> None:
    return None


@torch.library.register_fake("pyflowcore::group_norm_silu", lib=_library.definitions)
def _fake(x: Tensor, *args: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, groups, weight, bias, scale, shift, eps, silu = inputs
    ctx.save_for_backward(x, weight, bias, scale, shift)
    ctx.options = groups, eps, silu


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The norm is computed again from x, which is all that is kept."""
    x, weight, bias, scale, shift = ctx.saved_tensors
    groups, eps, silu = ctx.options
    if not x.numel():
        return (
            torch.zeros_like(x),
            None,
            *(None if t is None else torch.zeros_like(t) for t in ctx.saved_tensors[1:]),
            None,
            None,
        )
    normal, inverse = grouped(x.to(compute_dtype(x)), groups, eps)
    own, h = modulated(normal, weight, bias, scale, shift)
    grad = grad.to(h.dtype)
    if silu:
        gate = torch.sigmoid(h)
        grad = grad * (gate + h * gate * (1.0 - gate))

    def by_sample(value: Tensor) -> Tensor:
        return value.flatten(2).sum(2) if value.dim() > 2 else value

    scale_grad = None if scale is None else by_sample(grad * own).to(scale.dtype)
    shift_grad = None if shift is None else by_sample(grad).to(shift.dtype)
    grad = grad if scale is None else grad * (1.0 + per_channel(scale, grad))
    weight_grad = None if weight is None else by_sample(grad * normal).sum(0).to(weight.dtype)
    bias_grad = None if bias is None else by_sample(grad).sum(0).to(bias.dtype)
    grad = grad if weight is None else grad * per_channel(weight, grad)
    flat, along = (value.reshape(x.shape[0], groups, -1) for value in (grad, normal))
    inner = flat - flat.mean(-1, keepdim=True) - along * (flat * along).mean(-1, keepdim=True)
    grad_x = (inner * inverse).reshape(x.shape).to(x.dtype)
    return grad_x, None, weight_grad, bias_grad, scale_grad, shift_grad, None, None


torch.library.register_autograd(
    "pyflowcore::group_norm_silu", _backward, setup_context=_setup, lib=_library.definitions
)
