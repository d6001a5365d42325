"""Gradients of the operators of transformer blocks, in plain PyTorch and so differentiable again.

They are autograd Functions around operators that have no gradient of their own: an operator with a registered one costs 20 us
and more in every call, under no_grad as well. What backward needs beside its inputs it computes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._plain_block import affine, biased, by_token, normed, widened

ops = torch.ops.pyflowcore
_Given = Tensor | None


def _cast(grads: Sequence[_Given], like: Sequence[_Given]) -> tuple[_Given, ...]:
    """Each gradient in the dtype and shape of what it is of; none where there is nothing."""
    return tuple(
        None if grad is None or of is None else grad.to(of.dtype).reshape(of.shape)
        for grad, of in zip(grads, like, strict=True)
    )


def _over_tokens(value: Tensor) -> Tensor:
    """[B, C]: the sum over a sample's tokens."""
    return value.flatten(1, -2).sum(1) if value.dim() > 2 else value


def _over_rows(value: Tensor) -> Tensor:
    """[C]."""
    return value.flatten(0, -2).sum(0)


def _of_norm(
    grad: Tensor, x: Tensor, shift: _Given, scale: _Given, weight: _Given, bias: _Given, rms: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Widened gradients of x, shift, scale, weight and bias. With n = norm(x) and g its gradient, that of x is
    rstd (g - mean(g) - n mean(g n)); RMS has no mean(g)."""
    grad = widened(grad)
    n, rstd = normed(x, rms, eps)
    at_h = grad if scale is None else grad * (1 + by_token(scale, grad))
    at_n = at_h if weight is None else at_h * widened(weight)
    at_x = at_n - n * (at_n * n).mean(-1, keepdim=True)
    if not rms:
        at_x = at_x - at_n.mean(-1, keepdim=True)
    at_scale = _over_tokens(grad * affine(n, weight, bias)) if scale is not None else grad
    return at_x * rstd, _over_tokens(grad), at_scale, _over_rows(at_h * n), _over_rows(at_h)


class NormModulate(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        result: Tensor = ops.norm_modulate(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.rms, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Given, ...]:
        x, shift, scale, weight, bias = tensors = ctx.saved_tensors
        found = _of_norm(grads[0], x, shift, scale, weight, bias, ctx.rms, ctx.eps)
        return (*_cast(found, tensors), None, None)


def _of_residual(
    grad: Tensor, y: Tensor, gate: _Given, y_bias: _Given
) -> tuple[Tensor, Tensor, _Given, Tensor]:
    """Widened gradients of x, y, gate and y_bias."""
    grad = widened(grad)
    at_y = grad if gate is None else grad * by_token(gate, grad)
    at_gate = None if gate is None else _over_tokens(grad * biased(y, y_bias))
    return grad, at_y, at_gate, _over_rows(at_y)


class GateResidual(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        result: Tensor = ops.gate_residual(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.x_dtype = inputs[0].dtype
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Given, ...]:
        tensors = ctx.saved_tensors
        at_x, *rest = _of_residual(grads[0], *tensors)
        return (at_x.to(ctx.x_dtype), *_cast(rest, tensors))


class GateResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = ops.gate_residual_norm(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, *tensors, ctx.rms, ctx.eps = inputs
        ctx.save_for_backward(output[0], *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Given, ...]:
        moved, y, gate, y_bias, shift, scale, weight, bias = ctx.saved_tensors
        at_moved, *of_modulation = _of_norm(grads[1], moved, shift, scale, weight, bias, ctx.rms, ctx.eps)
        at_x, *rest = _of_residual(widened(grads[0]) + at_moved, y, gate, y_bias)
        given = (y, gate, y_bias, shift, scale, weight, bias)
        return (at_x.to(moved.dtype), *_cast([*rest, *of_modulation], given), None, None)


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        result: Tensor = ops.swiglu(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Given, ...]:
        x, bias = ctx.saved_tensors
        grad = widened(grads[0])
        first, second = biased(x, bias).chunk(2, -1)
        sigmoid = torch.sigmoid(first)
        value = first * sigmoid
        slope = sigmoid + value * (1 - sigmoid)
        both = torch.cat([grad * second * slope, grad * value], -1)
        return _cast([both, _over_rows(both[None])], (x, bias))


class GELU(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        result: Tensor = ops.gelu(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.tanh = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Given, ...]:
        x, bias = ctx.saved_tensors
        kind = "tanh" if ctx.tanh else "none"
        at_x = torch.ops.aten.gelu_backward(widened(grads[0]), biased(x, bias), approximate=kind)
        return (*_cast([at_x, _over_rows(at_x[None])], (x, bias)), None)
