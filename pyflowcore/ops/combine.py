"""combine_ and combine: one row of a plan in one pass over memory. csrc/core/row.hpp says what a row is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core, _library

_library.define(
    "combine_(Tensor(a!) x, Tensor? y, Tensor(b!)? y_out, Tensor(c!)? inp, Tensor(d!)? slots, Tensor? out, Tensor? out2, "
    "Tensor? guidance, Tensor? seeds, Tensor table, int row) -> ()"
)
_library.define(
    "combine(Tensor x, Tensor? y, Tensor[] slots, Tensor[] outs, Tensor? guidance, Tensor? seeds, Tensor table, int row) -> "
    "(Tensor, Tensor, Tensor)"
)

_R = _core.record


def _check_table(table: Tensor, row: int) -> None:
    if (
        table.dtype != torch.float64
        or table.dim() != 2
        or table.shape[1] != _R["width"]
        or table.device.type != "cpu"
    ):
        raise ValueError(
            f"table must be float64 [rows, {_R['width']}] on the CPU, got {table.dtype} {list(table.shape)} on {table.device}"
        )
    if not 0 <= row < table.shape[0]:
        raise ValueError(f"row is {row}, the table has {table.shape[0]}")
    # A compiled function cannot look at values; the kernel does.
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(table[row]).all()):
        raise ValueError(f"table: row {row} has a coefficient that is not finite")


def _check_state(x: Tensor, **others: Tensor | None) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x, the state, must be float32 or float64, got {x.dtype}")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.shape != x.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, the state has {list(x.shape)}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, the state is {x.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, the state is on {x.device}")


def _check_branches(x: Tensor, outs: Sequence[Tensor], guidance: Tensor | None, seeds: Tensor | None) -> None:
    for out in outs:
        if not out.is_floating_point():
            raise TypeError(f"out must be floating point, got {out.dtype}")
        if out.device != x.device:
            raise ValueError(f"out is on {out.device}, the state is on {x.device}")
        batch = max(x.shape[0], 1)
        if out.dim() != x.dim() or out.shape[1:] != x.shape[1:] or out.shape[0] % batch:
            raise ValueError(
                f"out has shape {list(out.shape)}, expected [J * B, ...] for the state's {list(x.shape)}"
            )
    if guidance is not None and guidance.dtype != x.dtype:
        raise TypeError(f"guidance is {guidance.dtype}, the state is {x.dtype}")
    if seeds is not None and (seeds.dtype != torch.int64 or seeds.shape != x.shape[:1]):
        raise ValueError(f"seeds must be int64 [{x.shape[0]}], got {seeds.dtype} {list(seeds.shape)}")
    for name, tensor in (("guidance", guidance), ("seeds", seeds)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, the state is on {x.device}")


def _check_written(x: Tensor, y_out: Tensor | None, inp: Tensor | None, slots: Tensor | None) -> None:
    for name, tensor in (("x", x), ("y_out", y_out), ("inp", inp), ("slots", slots)):
        if tensor is None:
            continue
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} is written and must not require a gradient: combine has one, combine_ has none"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} is written and must be contiguous, got strides {tuple(tensor.stride())}"
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, the state is on {x.device}")
    if inp is not None:
        if not inp.is_floating_point():
            raise TypeError(f"inp must be floating point, got {inp.dtype}")
        if inp.dim() != x.dim() or inp.shape[1:] != x.shape[1:] or inp.shape[0] % max(x.shape[0], 1):
            raise ValueError(
                f"inp has shape {list(inp.shape)}, expected [M * B, ...] for the state's {list(x.shape)}"
            )
    if slots is not None:
        if slots.dtype != x.dtype:
            raise TypeError(f"slots is {slots.dtype}, the state is {x.dtype}")
        if slots.shape[1:] != x.shape or slots.shape[0] > _R["max_slots"]:
            raise ValueError(
                f"slots has shape {list(slots.shape)}, expected [K, {', '.join(map(str, x.shape))}] with K at most "
                f"{_R['max_slots']}"
            )


def mark_written(*tensors: Tensor | None) -> None:
    """Tells autograd that these were written, which an operator without a gradient does not do by itself."""
    if torch.compiler.is_compiling():
        return  # a compiled function's graph knows the mutation from the schema
    torch.autograd.graph.increment_version([t for t in tensors if t is not None and not t.is_inference()])


def combine_(
    x: Tensor,
    table: Tensor,
    row: int,
    *,
    out: Tensor | None = None,
    out2: Tensor | None = None,
    y: Tensor | None = None,
    y_out: Tensor | None = None,
    inp: Tensor | None = None,
    slots: Tensor | None = None,
    guidance: Tensor | None = None,
    seeds: Tensor | None = None,
) -> None:
    """Runs row ``row`` of a plan's table in place: guidance, conversion, state, next point, noise.

    Args:
        x: the state [B, ...], float32 or float64, contiguous; updated.
        table: ``plan.table``, float64 [R, 56] on the CPU.
        out: the field's output [J B, ...] (conditional branches first, the unconditional last), any float dtype and strides;
            None for a row that evaluates nothing, or whose q is 0: it predicts from its point alone.
        out2: the unconditional branch [B, ...], if it is a tensor of its own.
        y: the point at which the field was evaluated, if it is not x.
        y_out: receives the next point, in the state's dtype.
        inp: [M B, ...], receives M copies of the next point, scaled and cast to inp's dtype.
        slots: the remembered predictions [K, B, ...].
        guidance: [R, 1 or B] or [R, J - 1, 1 or B], the state's dtype: the guidance scale w of each row.
        seeds: int64 [B], for rows that draw noise.

    No gradient: use :func:`combine` for that. Every tensor is on x's device. Buffers that are written must be contiguous.

    Raises:
        TypeError, ValueError: as :func:`combine`, and where a written buffer is not contiguous; RuntimeError where the row
            needs a slot, a branch's scale or seeds that are not given.
    """
    _check_table(table, row)
    _check_state(x, y=y, y_out=y_out)
    _check_branches(x, [branch for branch in (out, out2) if branch is not None], guidance, seeds)
    _check_written(x, y_out, inp, slots)
    torch.ops.pyflowcore.combine_(x, y, y_out, inp, slots, out, out2, guidance, seeds, table, row)
    mark_written(x, y_out, inp, slots)


def combine(
    x: Tensor,
    table: Tensor,
    row: int,
    *,
    outs: Sequence[Tensor] = (),
    y: Tensor | None = None,
    slots: Sequence[Tensor] = (),
    guidance: Tensor | None = None,
    seeds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The functional twin of :func:`combine_`, with a gradient in x, y, slots, outs and guidance.

    Returns:
        (new state, next point in the state's dtype and not scaled, this row's prediction); new tensors of x's shape.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices that do not agree; integer states; a table that is none.
    """
    _check_table(table, row)
    _check_state(x, y=y, **{f"slots[{k}]": slot for k, slot in enumerate(slots)})
    _check_branches(x, outs, guidance, seeds)
    return torch.ops.pyflowcore.combine(x, y, list(slots), list(outs), guidance, seeds, table, row)


@torch.library.register_fake("pyflowcore::combine_", lib=_library.definitions)
def _fake_in_place(*args: Any) -> None:
    return None


@torch.library.register_fake("pyflowcore::combine", lib=_library.definitions)
def _fake(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(3))  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, slots, outs, guidance, _, table, row = inputs
    ctx.point_given = y is not None
    ctx.counts = (len(slots), len(outs))
    # The branches' values matter to the gradient of the guidance scale alone.
    ctx.keep_outs = guidance is not None and guidance.requires_grad
    ctx.save_for_backward(guidance, table, *(outs if ctx.keep_outs else ()))
    ctx.out_shapes = [(out.shape, out.dtype) for out in outs]
    ctx.batch, ctx.row, ctx.dims = x.shape[0], row, x.dim()


def _backward(ctx: Any, grad_x: Tensor, grad_y: Tensor, grad_d: Tensor) -> tuple[Any, ...]:
    """The transpose of the row, which is linear: the point's gradient flows into the state's, both into the predictions'."""
    guidance, table, *outs = ctx.saved_tensors
    # Numbers as 0-dimensional tensors: a compiled function traces this without looking at values.
    record = table[ctx.row].unbind()
    state = grad_x + record[_R["c"]] * grad_y
    count, out_count = ctx.counts
    slots = [record[_R["b"] + k] * state + record[_R["e"] + k] * grad_y for k in range(count)]
    grad_state = record[_R["a"]] * state
    grad_point, grad_guidance = None, None
    grad_outs: list[Tensor] = []
    # A row may predict from its point alone (q = 0), without an output; one that evaluates nothing predicts nothing.
    d = grad_d + record[_R["b_new"]] * state + record[_R["e_new"]] * grad_y
    at_point = record[_R["evaluates"]] * record[_R["p"]] * d
    if ctx.point_given:
        grad_point = at_point
    else:
        grad_state = grad_state + at_point
    if out_count:
        grad_outs, grad_guidance = _guidance_backward(ctx, record[_R["q"]] * d, guidance, outs)
    return grad_state, grad_point, slots, grad_outs, grad_guidance, None, None, None


def _guidance_backward(
    ctx: Any, grad: Tensor, guidance: Tensor | None, outs: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor | None]:
    """Of out = u + sum_j w_j (c_j - u), the branches being stacked over the outs in order."""
    if ctx.batch == 0:
        empty = [torch.zeros(shape, dtype=dtype, device=grad.device) for shape, dtype in ctx.out_shapes]
        return empty, torch.zeros_like(guidance) if ctx.keep_outs and guidance is not None else None
    batch = ctx.batch
    counts = [shape[0] // batch for shape, _ in ctx.out_shapes]
    branches = sum(counts)
    shape = (-1,) + (1,) * (ctx.dims - 1)
    grad_guidance = None
    if branches == 1:
        parts = [grad]
    else:
        assert guidance is not None
        scale = guidance[ctx.row].reshape(-1, guidance.shape[-1])
        scales = [scale[min(j, len(scale) - 1)].reshape(shape) for j in range(branches - 1)]
        parts = [w * grad for w in scales]
        parts.append(grad - sum(parts[1:], parts[0]))
        if ctx.keep_outs:
            values = [part.to(grad.dtype) for out in outs for part in out.split(batch)]
            per_branch = torch.stack([((v - values[-1]) * grad).flatten(1).sum(1) for v in values[:-1]])
            if guidance.shape[-1] == 1:
                per_branch = per_branch.sum(1, keepdim=True)
            if guidance.dim() == 2:
                per_branch = per_branch.sum(0, keepdim=True)
            grad_guidance = torch.zeros_like(guidance)
            grad_guidance[ctx.row] = per_branch.reshape(guidance[ctx.row].shape)
    grads, first = [], 0
    for count, (_, dtype) in zip(counts, ctx.out_shapes, strict=True):
        grads.append(torch.cat(parts[first : first + count]).to(dtype))
        first += count
    return grads, grad_guidance


torch.library.register_autograd(
    "pyflowcore::combine", _backward, setup_context=_setup, lib=_library.definitions
)
