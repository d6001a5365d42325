"""What tracing does with arithmetic: affine maps, sines and cosines of the time, tables of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import WantsSize
from .traced import Context, Traced, as_constant, distinct, handles, lifted, paired, want_labels

__all__ = ["add", "scale"]


def constant_of(context: Context, value: Any) -> Tensor | None:
    """The values of what is constant, float64; None for what depends on an input."""
    if not isinstance(value, Traced):
        return as_constant(context, value)
    value = lifted(context, value)
    groups = context.tape.groups_of(value.atom)
    if any(group.kind != "constant" for group in groups):
        return None
    found = torch.empty(value.shape, dtype=torch.float64)
    for group in groups:
        mine = (value.atom >= group.start) & (value.atom < group.start + group.size)
        found[mine] = group.bias[value.atom[mine] - group.start]
    return found


def _elementwise(context: Context, value: Traced, constant: Tensor, scaled: bool) -> Traced:
    """value * constant, or value + constant."""
    sample, atom, constant = torch.broadcast_tensors(value.sample, value.atom, constant)
    values, which = constant.reshape(-1).unique(return_inverse=True)
    code, place = distinct(atom * len(values) + which.reshape(atom.shape))
    atoms, numbers = code // len(values), values[code % len(values)]
    one = torch.ones(len(code), dtype=torch.float64)
    made = context.tape.add(
        "affine", len(code), context.where, atoms=atoms, weight=numbers if scaled else one,
        bias=torch.zeros_like(one) if scaled else numbers, selects=not scaled, shifted=not scaled,
    )  # fmt: skip
    return context.make(sample, made[place])


def scale(context: Context, value: Traced, constant: Any) -> Traced:
    return _elementwise(context, value, as_constant(context, constant), True)


def add(context: Context, a: Traced, b: Traced) -> Traced:
    """The sum of two traced tensors."""
    sample_a, atom_a, sample_b, atom_b = torch.broadcast_tensors(a.sample, a.atom, b.sample, b.atom)
    sample = paired(context, sample_a, sample_b)
    most = int(atom_b.max()) + 1 if atom_b.numel() else 1
    code, place = distinct(atom_a * most + atom_b)
    count = len(code)
    made = context.tape.add(
        "affine", count, context.where, atoms=torch.cat([code // most, code % most]),
        weight=torch.ones(2 * count, dtype=torch.float64), bias=torch.zeros(count, dtype=torch.float64),
        selects=True, shifted=False,
    )  # fmt: skip
    return context.make(sample, made[place])


@handles("add", "radd")
def _add(context: Context, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if alpha != 1:
        b = _mul(context, b, alpha)
    ca, cb = constant_of(context, a), constant_of(context, b)
    if ca is not None and cb is not None:
        return ca + cb
    if cb is not None:
        return _elementwise(context, lifted(context, a), cb, False)
    if ca is not None:
        return _elementwise(context, lifted(context, b), ca, False)
    return add(context, lifted(context, a), lifted(context, b))


@handles("sub", "subtract")
def _sub(context: Context, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _add(context, a, _mul(context, b, -alpha))


@handles("rsub")
def _rsub(context: Context, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sub(context, b, a, alpha=alpha)


@handles("neg", "negative")
def _neg(context: Context, a: Traced) -> Traced:
    return scale(context, lifted(context, a), -1.0)


@handles("mul", "rmul", "multiply")
def _mul(context: Context, a: Any, b: Any) -> Any:
    ca, cb = constant_of(context, a), constant_of(context, b)
    if ca is not None and cb is not None:
        return ca * cb
    if cb is not None:
        return scale(context, lifted(context, a), cb)
    if ca is not None:
        return scale(context, lifted(context, b), ca)
    from .by_hand import gated

    return gated(context, lifted(context, a), lifted(context, b))


@handles("div", "truediv", "divide", "true_divide")
def _div(context: Context, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    cb = constant_of(context, b)
    if rounding_mode is not None:
        raise context.refuse("a rounded division")
    if cb is None:
        from .by_hand import inverse

        found = inverse(context, lifted(context, b))
        if found is not None:
            return _mul(context, a, found)
        raise context.refuse("a division by a value that depends on the inputs")
    return _mul(context, a, 1.0 / cb)


@handles("rdiv", "rtruediv", "reciprocal")
def _rdiv(context: Context, a: Any, b: Any = 1.0) -> Any:
    return _div(context, b, a)


@handles("addcmul")
def _addcmul(context: Context, a: Any, b: Any, c: Any, *, value: float = 1) -> Any:
    return _add(context, a, _mul(context, _mul(context, b, c), value))


@handles("linear")
def linear(context: Context, value: Any, weight: Tensor, bias: Tensor | None = None) -> Traced:
    """W v + b over the last dimension."""
    if isinstance(weight, Traced) or isinstance(bias, Traced):
        raise context.refuse("weights that depend on the inputs")
    value = lifted(context, value)
    weight = as_constant(context, weight)
    out, into = weight.shape
    if value.dim() == 0 or value.shape[-1] != into:
        _check_width(context, value, into)
    shift = torch.zeros(out, dtype=torch.float64) if bias is None else as_constant(context, bias)
    rows, samples = value.atom.reshape(-1, into), value.sample.reshape(-1, into)
    sample = samples.max(dim=1).values
    if bool(((samples != sample[:, None]) & (samples >= 0)).any()):
        raise context.refuse("a linear map over different samples of the batch")
    if bool((rows == rows[:1]).all()):
        patterns, which = rows[:1], torch.zeros(len(rows), dtype=torch.int64)
    else:
        patterns, which = rows.unique(dim=0, return_inverse=True)
    made = torch.stack(
        [
            context.tape.add(
                "affine", out, context.where, atoms=p, weight=weight, bias=shift, shifted=bias is not None
            )
            for p in patterns
        ]
    )
    shape = (*value.shape[:-1], out)
    return context.make(sample[:, None].expand(-1, out).reshape(shape), made[which].reshape(shape))


def _check_width(context: Context, value: Traced, into: int) -> None:
    """A vector that does not fit a layer: an input whose size was a guess may be what is wrong."""
    width = value.shape[-1] if value.dim() else 0
    roots = context.tape.roots(value.atom[..., :].reshape(-1))
    guessed = [g for g in roots if g.name in context.guessed or (g.kind == "x" and "x" in context.guessed)]
    conditions = [g for g in guessed if g.kind == "condition"]
    if len(conditions) > 1:
        names = ", ".join(sorted(g.name for g in conditions))
        raise context.refuse(
            f"the sizes of {names} do not follow from the layers: give sizes={{...}}", allowed=False
        )
    for group in conditions or guessed:
        if group.size + into - width > 0:
            raise WantsSize(group.name, group.size + into - width)
    raise context.refuse(
        f"the layer takes {into} numbers and was given {width}: check inputs= and sizes=",
        allowed=False,
        by_shapes=True,
    )


@handles("matmul", "mm")
def _matmul(context: Context, a: Any, b: Any) -> Any:
    if not isinstance(b, Traced):
        if b.dim() > 2:
            raise context.refuse("a matrix product with more than one matrix")
        found = linear(context, a, b.mT if b.dim() == 2 else b[None])
        return found if b.dim() == 2 else context.make(found.sample[..., 0], found.atom[..., 0])
    if not isinstance(a, Traced) and a.dim() == 2 and b.dim() == 2:
        found = linear(context, context.make(b.sample.mT, b.atom.mT), a)
        return context.make(found.sample.mT, found.atom.mT)
    raise context.refuse("a matrix product of two values that depend on the inputs")


@handles("rmatmul")
def _rmatmul(context: Context, a: Any, b: Any) -> Any:
    return _matmul(context, b, a)


@handles("addmm")
def _addmm(context: Context, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _mul(context, _matmul(context, a, b), alpha)
    return _add(context, product, _mul(context, bias, beta))


@handles("outer", "ger")
def _outer(context: Context, a: Any, b: Any) -> Any:
    return _mul(context, a[:, None], b[None, :])


def _wave(context: Context, value: Traced, name: str) -> Traced:
    code, place = distinct(lifted(context, value).atom)
    form = context.tape.in_inputs(context.tape.values(code))
    if len(form.blocks) != 1 or next(iter(form.blocks)).kind != "time":
        raise context.refuse(f"a {name} of something else than frequency * t + phase")
    (frequency,) = form.blocks.values()
    made = context.tape.add(
        "feature", len(code), context.where, name=name, weight=frequency[:, 0], bias=form.bias
    )
    return context.make(value.sample, made[place])


@handles("sin")
def _sine(context: Context, value: Traced) -> Traced:
    return _wave(context, value, "sine")


@handles("cos")
def _cosine(context: Context, value: Traced) -> Traced:
    return _wave(context, value, "cosine")


def _lookup(context: Context, labels: Any, table: Tensor, what: str) -> Traced:
    if not isinstance(labels, Traced):
        raise context.refuse(f"{what} with a table that depends on the inputs")
    if not labels.is_label:
        raise want_labels(context, labels, what)
    atoms = labels.atom.unique().tolist()
    where = torch.full_like(labels.atom, 0)
    tables = []
    for place, atom in enumerate(atoms):
        name = context.tape.group_of(atom).name
        tables.append(
            context.tape.add(
                "table", table.shape[1], context.where, name=name, weight=table, atoms=torch.tensor([atom])
            )
        )
        where[labels.atom == atom] = place
    sample = labels.sample[..., None].expand(*labels.shape, table.shape[1])
    return context.make(sample, torch.stack(tables)[where])


@handles("embedding")
def _embedding(
    context: Context, labels: Any, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    *args: Any, **kwargs: Any,
) -> Traced:  # fmt: skip
    if max_norm is not None:
        raise context.refuse("an embedding with max_norm")
    return _lookup(context, labels, as_constant(context, weight), "an embedding")


@handles("one_hot")
def _one_hot(context: Context, labels: Any, num_classes: int = -1) -> Traced:
    if num_classes < 1:
        raise context.refuse("one_hot without num_classes")
    return _lookup(context, labels, torch.eye(num_classes, dtype=torch.float64), "one_hot")


@handles("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d")
def _dropout(
    context: Context, value: Traced, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Traced:
    if training and p > 0:
        raise context.refuse("dropout in training mode: call the module's eval() first", allowed=False)
    return value
