"""What tracing does with activations: as modules and functions, and x * sigmoid(x) and its like written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .operations import add, scale
from .traced import Context, Traced, distinct, handles, lifted, paired

__all__ = ["activation", "gated"]


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


@handles("erf", "special_erf")
def _erf(context: Context, value: Any) -> Traced:
    return activation(context, value, "erf", kind="aside")


_GATES = {("activation", "sigmoid"), ("aside", "erf")}


def gated(context: Context, a: Traced, b: Traced) -> Traced:
    """The product of two values that depend on the inputs: v (p + q sigmoid(v)) and v (p + q erf(v)), in either order."""
    sample_a, atom_a, sample_b, atom_b = torch.broadcast_tensors(a.sample, a.atom, b.sample, b.atom)
    sample = paired(context, sample_a, sample_b)
    most = int(atom_b.max()) + 1
    code, place = distinct(atom_a * most + atom_b)
    one, other = code // most, code % most
    for factor, gate in ((one, other), (other, one)):
        found = _by_hand(context, factor, gate)
        if found is not None:
            return context.make(sample, found[place])
    raise context.refuse("a product of two values that both depend on the inputs, and are not x * sigmoid(x)")


def _by_hand(context: Context, factor: Tensor, gate: Tensor) -> Tensor | None:
    tape = context.tape
    base, q, p = tape.elementwise(gate)  # the gate is q g + p
    groups = tape.groups_of(base)
    if len(groups) != 1 or (groups[0].kind, groups[0].name) not in _GATES:
        return None
    argument = groups[0].atoms[base - groups[0].start]
    ratio = _ratio(*tape.elementwise(factor), *tape.elementwise(argument))
    if ratio is None:
        return None
    v = context.make(torch.zeros_like(argument), argument)
    if groups[0].name == "sigmoid":
        curved = scale(context, activation(context, v, "silu"), ratio * q)
        rest = p
    else:  # v erf(v) = sqrt(2) GELU(sqrt(2) v) - v
        root = math.sqrt(2.0)
        curved = scale(context, activation(context, scale(context, v, root), "gelu"), ratio * q * root)
        rest = p - q
    if bool((rest == 0).all()):
        return curved.atom
    return add(context, curved, scale(context, v, ratio * rest)).atom


def _ratio(
    base: Tensor, factor: Tensor, shift: Tensor, other: Tensor, slope: Tensor, offset: Tensor
) -> Tensor | None:
    """r, where factor base + shift = r (slope other + offset)."""
    if not torch.equal(base, other) or bool((slope == 0).any()):
        return None
    ratio = factor / slope
    return ratio if bool(((shift - ratio * offset).abs() <= 1e-14 * (1 + shift.abs())).all()) else None
