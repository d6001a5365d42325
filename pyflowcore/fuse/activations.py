"""What tracing does with activations: as modules and functions, and x * sigmoid(x) and its like written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .operations import add, constant_of, scale
from .tape import Form
from .traced import Context, Traced, distinct, handles, lifted, paired


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
    form = tape.in_inputs(tape.values(gate))
    if len(form.blocks) != 1:
        return None
    ((group, block),) = form.blocks.items()
    wanted = {("activation", "sigmoid"), ("aside", "erf")}
    if (group.kind, group.name) not in wanted or not bool(((block != 0).sum(dim=1) == 1).all()):
        return None
    column = block.abs().argmax(dim=1)
    q, p, argument = block.gather(1, column[:, None])[:, 0], form.bias, group.atoms[column]
    ratio = _ratio(tape.in_inputs(tape.values(factor)), tape.in_inputs(tape.values(argument)))
    if ratio is None:
        return None
    v = context.make(torch.zeros_like(argument), argument)
    if group.name == "sigmoid":
        curved = scale(context, activation(context, v, "silu"), ratio * q)
        rest = p
    else:  # v erf(v) = sqrt(2) GELU(sqrt(2) v) - v
        root = math.sqrt(2.0)
        curved = scale(context, activation(context, scale(context, v, root), "gelu"), ratio * q * root)
        rest = p - q
    if bool((rest == 0).all()):
        return curved.atom
    return add(context, curved, scale(context, v, ratio * rest)).atom


def _ratio(factor: Form, argument: Form) -> Tensor | None:
    """r [rows], where factor = r argument."""
    if set(factor.blocks) != set(argument.blocks):
        return None
    a = torch.cat([*(factor.blocks[g] for g in argument.blocks), factor.bias[:, None]], dim=1)
    b = torch.cat([*argument.blocks.values(), argument.bias[:, None]], dim=1)
    square = (b * b).sum(dim=1)
    ratio = torch.where(square > 0, (a * b).sum(dim=1) / square.clamp_min(1e-300), 1.0)
    if bool(((a - ratio[:, None] * b).abs() > 1e-12 * (1 + a.abs())).any()):
        return None
    return ratio


__all__ = ["activation", "constant_of", "gated"]
