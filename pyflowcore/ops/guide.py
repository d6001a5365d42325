"""guide_ and combine_mixed_: guidance whose weights depend on the sample. csrc/core/guide.hpp says what is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import _plain_guide
from ._plain_guide import RULE, scratch_size
from .combine import _check_branches, _check_overlap, _check_state, _check_table, _check_written, mark_written

_library.define(
    "guide_(Tensor x, Tensor? y, Tensor(a!)? m, Tensor(b!) mix, Tensor(c!) scratch, Tensor out, Tensor? out2, "
    "Tensor guidance, Tensor rules, int row) -> ()"
)
_library.define(
    "combine_mixed_(Tensor(a!) x, Tensor? y, Tensor(b!)? y_out, Tensor(c!)? inp, Tensor(d!)? slots, Tensor out, "
    "Tensor? out2, Tensor mix, Tensor? m, Tensor? seeds, Tensor table, int row) -> ()"
)


def guide_(
    x: Tensor,
    rules: Tensor,
    row: int,
    *,
    out: Tensor,
    guidance: Tensor,
    out2: Tensor | None = None,
    y: Tensor | None = None,
    m: Tensor | None = None,
    mix: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """The weights of a row's branches, one set per sample, from one pass over them::

        guided = c_1 + (sum_j mix[j] (c_j - u) + mix[0] c_1 + mix[J] u + mix[J + 1] y)

    with m in place of c_1 - u where there is a momentum (its weight is divided by q). The inner products are float64 sums
    whose order depends on a sample's size alone: the weights are the same bits alone, in any batch, at any number of threads
    and on any device.

    Args:
        x: the state [B, ...], float32 or float64: it gives shape and dtype, and is the point where y is None.
        rules: float64 [R, 7] on the CPU, a line per row: (CFG-Zero* 1 or 0, eta, norm or 0, beta, phi, p, q); the predicted
            data is p y + q out.
        out: the field's output [J B, ...], conditional branches first, the unconditional last, any float dtype and strides.
        guidance: [R, 1 or B] or [R, J - 1, 1 or B], the state's dtype: the scales w.
        out2: the unconditional branch [B, ...], if it is a tensor of its own.
        y: the point at which the field was evaluated, if it is not x.
        m: the momentum [B, ...], the state's dtype, contiguous; becomes q (c_1 - u) + beta m. For two branches.
        mix: [J + 1, B], or [J + 2, B] where eta is not 1 and p not 0; receives the weights. Default: a new tensor.
        scratch: float64, at least ``scratch_size(...)`` elements. Default: a new tensor. A compiled function gives both.

    m, mix and scratch are written and share no memory with each other or with anything else that is given.

    Returns:
        mix, for :func:`combine_mixed_`.

    Raises:
        TypeError, ValueError, RuntimeError: shapes, dtypes or devices that do not agree, naming the argument;
            ValueError where a written tensor overlaps another.
    """
    _check_state(x, y=y, m=m)
    _check_branches(x, [branch for branch in (out, out2) if branch is not None], guidance, None)
    if rules.dim() != 2 or rules.shape[1] != len(RULE) or rules.dtype != torch.float64:
        raise ValueError(f"rules must be float64 [rows, {len(RULE)}], got {rules.dtype} {list(rules.shape)}")
    if not 0 <= row < rules.shape[0]:
        raise ValueError(f"row is {row}, rules has {rules.shape[0]}")
    if mix is None or scratch is None:
        batch = x.shape[0]
        branches = (out.shape[0] // batch if batch else 2) + (out2 is not None)
        point = _plain_guide.uses_point(rules[row].tolist())
        mix = x.new_zeros((_plain_guide.rows(branches, point), batch)) if mix is None else mix
        if scratch is None:
            size = scratch_size(batch, x[0].numel() if batch else 0, branches, point)
            scratch = x.new_empty(size, dtype=torch.float64)
    _check_overlap(
        x,
        {"m": m, "mix": mix, "scratch": scratch},
        {"x": x, "y": y, "out": out, "out2": out2, "guidance": guidance, "rules": rules},
        in_place=False,
    )
    torch.ops.pyflowcore.guide_(x, y, m, mix, scratch, out, out2, guidance, rules, row)
    mark_written(m, mix, scratch)
    return mix


def combine_mixed_(
    x: Tensor,
    table: Tensor,
    row: int,
    *,
    out: Tensor,
    mix: Tensor,
    out2: Tensor | None = None,
    m: Tensor | None = None,
    y: Tensor | None = None,
    y_out: Tensor | None = None,
    inp: Tensor | None = None,
    slots: Tensor | None = None,
    seeds: Tensor | None = None,
) -> None:
    """:func:`combine_` with the weights of :func:`guide_` in place of guidance scales.

    Args:
        mix: [J + 1, B], or [J + 2, B] with a weight for the point, the state's dtype, contiguous.
        m: the momentum [B, ...] that takes the place of c_1 - u; for two branches.

    The others are those of :func:`combine_`; so are the errors.
    """
    _check_table(table, row)
    _check_state(x, y=y, y_out=y_out, m=m)
    _check_branches(x, [branch for branch in (out, out2) if branch is not None], None, seeds)
    _check_written(x, y_out, inp, slots)
    _check_overlap(
        x,
        {"x": x, "y_out": y_out, "inp": inp, "slots": slots},
        {"y": y, "out": out, "out2": out2, "mix": mix, "m": m, "seeds": seeds, "table": table},
    )
    torch.ops.pyflowcore.combine_mixed_(x, y, y_out, inp, slots, out, out2, mix, m, seeds, table, row)
    mark_written(x, y_out, inp, slots)


@torch.library.register_fake("pyflowcore::guide_", lib=_library.definitions)
def _fake_guide(*args: Any) -> None:
    return None


@torch.library.register_fake("pyflowcore::combine_mixed_", lib=_library.definitions)
def _fake_mixed(*args: Any) -> None:
    return None
