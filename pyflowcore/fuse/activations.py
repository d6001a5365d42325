"""What tracing does with activations that are modules or functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .operations import scale
from .traced import Context, Traced, distinct, handles, lifted

__all__ = ["activation"]


def activation(
    context: Context, value: Any, name: str, parameter: float = 0.0, kind: str = "activation"
) -> Traced:
    value = lifted(context, value)
    code, place = distinct(value.atom)
    made = context.tape.add(kind, len(code), context.where, name=name, parameter=parameter, atoms=code)
    return context.make(value.sample, made[place])


def _simple(name: str, *functions: str) -> None:
    @handles(*functions)
    def apply(context: Context, value: Any, inplace: bool = False, **kwargs: Any) -> Traced:
        return _maybe_in_place(value, activation(context, value, name), inplace)


def _maybe_in_place(value: Any, found: Traced, inplace: bool) -> Traced:
    return value.become(found) if inplace else found


for _name, _functions in {
    "relu": ("relu",), "silu": ("silu",), "selu": ("selu",), "tanh": ("tanh",), "sigmoid": ("sigmoid", "special_expit"),
}.items():  # fmt: skip
    _simple(_name, *_functions)


@handles("gelu")
def _gelu(context: Context, value: Any, *, approximate: str = "none") -> Traced:
    if approximate not in ("none", "tanh"):
        raise context.refuse(
            f"GELU with approximate={approximate!r}, where 'none' and 'tanh' can be fused", allowed=False
        )
    return activation(context, value, "gelu" if approximate == "none" else "gelu_tanh")


@handles("softplus")
def _softplus(context: Context, value: Any, beta: float = 1.0, threshold: float = 20.0) -> Traced:
    if threshold != 20.0:
        raise context.refuse(f"softplus with threshold={threshold}, where 20 can be fused", allowed=False)
    return activation(context, value, "softplus", float(beta))


@handles("elu")
def _elu(context: Context, value: Any, alpha: float = 1.0, inplace: bool = False) -> Traced:
    return _maybe_in_place(value, activation(context, value, "elu", float(alpha)), inplace)


@handles("leaky_relu")
def _leaky(context: Context, value: Any, negative_slope: float = 0.01, inplace: bool = False) -> Traced:
    return _maybe_in_place(value, activation(context, value, "leaky_relu", float(negative_slope)), inplace)


@handles("prelu")
def _prelu(context: Context, value: Any, weight: Tensor) -> Traced:
    if weight.numel() != 1:
        raise context.refuse(
            "PReLU with a slope for each channel, where one slope can be fused", allowed=False
        )
    return activation(context, value, "leaky_relu", float(weight))


@handles("clamp", "clip", "clamp_min")
def _clamp(context: Context, value: Any, min: Any = None, max: Any = None) -> Traced:
    if max is not None or isinstance(min, Tensor) or min != 0:
        raise context.refuse("a clamp other than clamp(min=0)")
    return activation(context, value, "relu")


@handles("logsigmoid", "log_sigmoid")
def _logsigmoid(context: Context, value: Any) -> Traced:
    """-softplus(-x)."""
    return scale(
        context, activation(context, scale(context, lifted(context, value), -1.0), "softplus", 1.0), -1.0
    )


@handles("maximum", "max", "fmax")
def _maximum(context: Context, a: Any, b: Any = None, **kwargs: Any) -> Traced:
    zero, value = (a, b) if not isinstance(a, Traced) else (b, a)
    if kwargs or not isinstance(zero, Tensor) or isinstance(zero, Traced) or bool((zero != 0).any()):
        raise context.refuse("a maximum with something else than zeros")
    return activation(context, value, "relu")
