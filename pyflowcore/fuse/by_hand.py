"""What tracing does with activations written by hand: x * sigmoid(x), GELU from erf or tanh, softplus from exp and log.

Their parts (erf, exp, a cube) are kept aside on the tape, and become an activation where they meet the rest of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .activations import activation
from .operations import add, scale
from .tape import Group
from .traced import Context, Traced, distinct, handles, lifted, paired

__all__ = ["gated", "inverse"]

# z (1 + tanh(_KAPPA (z + _CUBIC z^3))) / 2 is GELU's approximation (Hendrycks & Gimpel 2016, section 2).
_KAPPA, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715


@handles("erf", "special_erf")
def _erf(context: Context, value: Any) -> Traced:
    return activation(context, value, "erf", kind="aside")


@handles("exp")
def _exp(context: Context, value: Any) -> Traced:
    return activation(context, value, "exp", kind="aside")


@handles("pow")
def _pow(context: Context, value: Any, exponent: Any) -> Traced:
    if isinstance(exponent, Tensor) or exponent != 3 or not isinstance(value, Traced):
        raise context.refuse("pow is not a part of a small network, but for the cube in GELU's approximation")
    return activation(context, value, "cube", kind="aside")


@handles("log1p")
def _log1p(context: Context, value: Any) -> Traced:
    return _softplus(context, lifted(context, value), 0.0)


@handles("log")
def _log(context: Context, value: Any) -> Traced:
    return _softplus(context, lifted(context, value), 1.0)


def _softplus(context: Context, value: Traced, one: float) -> Traced:
    """log(1 + exp(v)), where value is one + exp(v)."""
    base, factor, shift = context.tape.elementwise(value.atom.reshape(-1))
    group = _aside(context, base, "exp")
    if group is None or bool((factor != 1).any()) or bool((shift != one).any()):
        raise context.refuse("a logarithm of something else than 1 + exp(x)")
    argument = context.make(value.sample, group.atoms[base - group.start].reshape(value.shape))
    return activation(context, argument, "softplus", 1.0)


def inverse(context: Context, value: Traced) -> Traced | None:
    """1 / value, where value is a multiple of 1 + exp(-v): sigmoid(v)."""
    base, factor, shift = context.tape.elementwise(value.atom.reshape(-1))
    group = _aside(context, base, "exp")
    if group is None or bool((factor != shift).any()) or bool((shift == 0).any()):
        return None
    argument = context.make(value.sample, group.atoms[base - group.start].reshape(value.shape))
    sigmoid = activation(context, scale(context, argument, -1.0), "sigmoid")
    return scale(context, sigmoid, (1.0 / shift).reshape(value.shape))


def _aside(context: Context, atoms: Tensor, name: str) -> Group | None:
    """The group of this function that holds all the atoms."""
    groups = context.tape.groups_of(atoms)
    return groups[0] if len(groups) == 1 and (groups[0].kind, groups[0].name) == ("aside", name) else None


_GATES = {("activation", "sigmoid"), ("activation", "tanh"), ("aside", "erf")}


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
    if groups[0].name == "tanh":
        found = _inside_tanh(context, argument)
        if found is None:
            return None
        argument, root = found
    else:
        root = torch.tensor(1.0 if groups[0].name == "sigmoid" else math.sqrt(2.0), dtype=torch.float64)
    ratio = _ratio(*tape.elementwise(factor), *tape.elementwise(argument))
    if ratio is None:
        return None
    v = context.make(torch.zeros_like(argument), argument)
    if groups[0].name == "sigmoid":
        curved = scale(context, activation(context, v, "silu"), ratio * q)
        rest = p
    else:  # z erf(z / sqrt(2)) = 2 GELU(z) - z, with z = root v; so with tanh in the place of erf
        name = "gelu" if groups[0].name == "erf" else "gelu_tanh"
        curved = scale(context, activation(context, scale(context, v, root), name), 2.0 * ratio * q / root)
        rest = p - q
    if bool((rest == 0).all()):
        return curved.atom
    return add(context, curved, scale(context, v, ratio * rest)).atom


def _inside_tanh(context: Context, atoms: Tensor) -> tuple[Tensor, Tensor] | None:
    """v and r, where the atoms are what GELU's approximation takes the tanh of, for z = r v."""
    tape = context.tape
    base, factor, shift = tape.elementwise(atoms)
    groups = tape.groups_of(base)
    if len(groups) != 1 or groups[0].kind != "affine" or not groups[0].selects or bool((shift != 0).any()):
        return None
    size, at = groups[0].size, base - groups[0].start
    if len(groups[0].atoms) != 2 * size:
        return None
    for one, other in ((at, at + size), (at + size, at)):
        v, linear, offset = tape.elementwise(groups[0].atoms[one])
        cubes, cubic, beside = tape.elementwise(groups[0].atoms[other])
        group = _aside(context, cubes, "cube")
        if group is None or bool((offset != 0).any()) or bool((beside != 0).any()):
            continue
        inner, slope, within = tape.elementwise(group.atoms[cubes - group.start])
        root = factor * linear / _KAPPA
        wanted = _KAPPA * _CUBIC * root**3
        if (
            torch.equal(inner, v)
            and not bool((within != 0).any())
            and bool(((factor * cubic * slope**3 - wanted).abs() <= 1e-8 * wanted.abs()).all())
        ):
            return v, root
    return None


def _ratio(
    base: Tensor, factor: Tensor, shift: Tensor, other: Tensor, slope: Tensor, offset: Tensor
) -> Tensor | None:
    """r, where factor base + shift = r (slope other + offset)."""
    if not torch.equal(base, other) or bool((slope == 0).any()):
        return None
    ratio = factor / slope
    return ratio if bool(((shift - ratio * offset).abs() <= 1e-14 * (1 + shift.abs())).all()) else None
