"""combine_ and combine: one row of a plan in one pass over memory. csrc/core/row.hpp says what a row is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core, _library
from .randn import STREAMS

_library.define(
    "combine_(Tensor(a!) x, Tensor? y, Tensor(b!)? y_out, Tensor(c!)? inp, Tensor(d!)? slots, Tensor? out, Tensor? out2, "
    "Tensor? guidance, Tensor? seeds, Tensor table, int row) -> ()"
)
_library.define(
    "combine(Tensor x, Tensor? y, Tensor[] slots, Tensor[] outs, Tensor? guidance, Tensor? seeds, Tensor table, int row) -> "
    "(Tensor, Tensor, Tensor)"
)

_R = _core.record
_PLAN_STREAM = STREAMS["plan"]


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
        some = out.shape[0] > 0 or x.shape[0] == 0 if out.dim() else False
        if not some or out.dim() != x.dim() or out.shape[1:] != x.shape[1:] or out.shape[0] % batch:
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


def _check_overlap(
    x: Tensor, written: dict[str, Tensor | None], read: dict[str, Tensor | None], in_place: bool = True
) -> None:
    """Written buffers share no memory with each other, and with what is read only where each element is read before it is
    written: at the same place in a block of the state's shape (a point updated in place, an output that is the input); nor
    there if ``in_place`` is False."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type == "meta":
        return  # no addresses to look at
    block = x.numel() * x.element_size()
    spans: list[tuple[str, int, int]] = []
    for name, tensor in written.items():
        if tensor is None or not tensor.numel():
            continue
        first = tensor.data_ptr()
        end = first + tensor.numel() * tensor.element_size()
        for other, start, stop in spans:
            if first < stop and start < end:
                raise ValueError(
                    f"{other} and {name} overlap in memory by {min(end, stop) - max(first, start)} bytes; both are written"
                )
        spans.append((name, first, end))
    for name, tensor in read.items():
        # What is not contiguous is copied before anything is written.
        if tensor is None or not tensor.numel() or not tensor.is_contiguous():
            continue
        first = tensor.data_ptr()
        end = first + tensor.numel() * tensor.element_size()
        for other, start, stop in spans:
            if first >= stop or start >= end:
                continue
            owner = written[other]
            same = owner is not None and tensor.dtype == owner.dtype and (first - start) % block == 0
            if in_place and same and name not in ("guidance", "mix", "seeds", "table"):
                continue
            shared = min(end, stop) - max(first, start)
            allowed = "they may be one buffer, but not parts of one that are shifted against each other"
            raise ValueError(
                f"{name} is read and {other} is written, and they overlap in memory by {shared} bytes; "
                + (allowed if in_place else "nothing that is written may be shared")
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

    No gradient: use :func:`combine` for that. Every tensor is on x's device. Buffers that are written must be contiguous and
    must not overlap (the state may be the first part of the memory whose rest is inp). y and out may be buffers that are
    written, or whole blocks of them, but no shifted part.

    Raises:
        TypeError, ValueError: as :func:`combine`, and where a written buffer is not contiguous or overlaps another;
            RuntimeError where the row needs a slot, a branch's scale or seeds that are not given.
    """
    _check_table(table, row)
    _check_state(x, y=y, y_out=y_out)
    _check_branches(x, [branch for branch in (out, out2) if branch is not None], guidance, seeds)
    _check_written(x, y_out, inp, slots)
    _check_overlap(
        x,
        {"x": x, "y_out": y_out, "inp": inp, "slots": slots},
        {"y": y, "out": out, "out2": out2, "guidance": guidance, "seeds": seeds, "table": table},
    )
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
    """The functional twin of :func:`combine_`, with a gradient in x, y, slots, outs, guidance and table.

    The gradient in ``table`` is that of the coefficients p, q, a, c, b_new, e_new, b, e, s and r of the row. a and a - 1 travel
    beside each other and are one coefficient: the columns "a" and "c" carry its whole gradient, "a_minus_1" and "c_minus_1"
    none. So make both columns from one parameter; it then gets the right gradient. A coefficient of exactly 0 has one as well.
    What is not a coefficient (t, evaluates, store, draw indices; in_scale, which scales nothing here) has gradient 0, and so
    has the coefficient of a slot or a draw that the call does not have.

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
    x, y, slots, outs, guidance, seeds, table, row = inputs
    ctx.point_given = y is not None
    ctx.counts = (len(slots), len(outs))
    ctx.learns_table = table.requires_grad
    # The branches' values matter to the gradients of the guidance scale and of the table alone.
    ctx.scale_learned = guidance is not None and guidance.requires_grad
    kept_outs = outs if ctx.scale_learned or ctx.learns_table else ()
    # A coefficient's gradient needs what it multiplies.
    operands = (seeds, x, y, output[0], output[2], *slots) if ctx.learns_table else ()
    ctx.save_for_backward(guidance, table, *kept_outs, *operands)
    ctx.out_shapes = [(out.shape, out.dtype) for out in outs]
    ctx.batch, ctx.row, ctx.dims = x.shape[0], row, x.dim()


def _backward(ctx: Any, grad_x: Tensor, grad_y: Tensor, grad_d: Tensor) -> tuple[Any, ...]:
    """The transpose of the row, which is linear: the point's gradient flows into the state's, both into the predictions'."""
    guidance, table, *outs = ctx.saved_tensors
    operands: list[Any] = []
    if ctx.learns_table:
        outs, operands = outs[: ctx.counts[1]], outs[ctx.counts[1] :]
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
    grad_table = None
    if ctx.learns_table:
        grad_table = _table_backward(ctx, table, record, guidance, outs, operands, state, grad_y, d)
    return (
        grad_state,
        grad_point,
        slots,
        grad_outs,
        grad_guidance,
        None,
        grad_table,
        None,
    )


def _table_backward(
    ctx: Any, table: Tensor, record: Sequence[Tensor], guidance: Tensor | None, outs: Sequence[Tensor], operands: list[Any],
    state: Tensor, point: Tensor, prediction: Tensor,
) -> Tensor:  # fmt: skip
    """Of each coefficient: the inner product of what it multiplies with the gradient of what it is added to.

    state, point, prediction: the whole gradients of the new state, the next point and the row's prediction. The sums are taken
    in float64; one transfer brings them to the table, which is on the CPU.
    """
    seeds, x, y, new_x, d, *slots = operands
    columns: list[int] = []
    sums: list[Tensor] = []

    def add(column: int, grad: Tensor, operand: Tensor) -> None:
        columns.append(column)
        sums.append((grad * operand).sum(dtype=torch.float64))

    add(_R["a"], state, x)
    add(_R["c"], point, new_x)
    # A row that evaluates nothing has no prediction; one that predicts from its point alone has no output.
    add(_R["p"], record[_R["evaluates"]] * prediction, x if y is None else y)
    if outs:
        add(_R["q"], prediction, _guided(ctx, guidance, outs, x))
    add(_R["b_new"], state, d)
    add(_R["e_new"], point, d)
    for k, slot in enumerate(slots[: _R["max_slots"]]):
        add(_R["b"] + k, state, slot)
        add(_R["e"] + k, point, slot)
    if seeds is not None:
        if torch.compiler.is_compiling():
            raise NotImplementedError(
                "the gradient of combine in a table, with seeds, redraws noise that the table names by value, which a compiled "
                "function cannot see: take it outside torch.compile"
            )
        for n in range(_R["max_draws"]):
            draw = int(record[_R["draw"] + n])
            if draw < 0:
                continue
            xi = torch.ops.pyflowcore.randn(seeds, list(x.shape[1:]), _PLAN_STREAM, draw, x.dtype)
            add(_R["s"] + n, state, xi)
            add(_R["r"] + n, point, xi)
    # An index in place of a write per column: differentiable again, and one copy from the device.
    line = torch.zeros(_R["width"], dtype=torch.float64)
    line = line.index_copy(0, torch.tensor(columns), torch.stack(sums).to(table.device))
    return torch.zeros_like(table).index_copy(0, torch.tensor([ctx.row]), line[None])


def _guided(ctx: Any, guidance: Tensor | None, outs: Sequence[Tensor], x: Tensor) -> Tensor:
    """The field's guided output, in the state's dtype."""
    if ctx.batch == 0:
        return torch.zeros_like(x)
    values = [part.to(x.dtype) for out in outs for part in out.split(ctx.batch)]
    total = values[-1]
    if len(values) > 1:
        assert guidance is not None
        for w, value in zip(_scales(ctx, guidance, len(values)), values[:-1], strict=True):
            total = total + w * (value - values[-1])
    return total


def _scales(ctx: Any, guidance: Tensor, branches: int) -> list[Tensor]:
    """The scale of each conditional branch, in a shape that multiplies the state's."""
    scale = guidance[ctx.row].reshape(-1, guidance.shape[-1])
    shape = (-1,) + (1,) * (ctx.dims - 1)
    return [scale[min(j, len(scale) - 1)].reshape(shape) for j in range(branches - 1)]


def _guidance_backward(
    ctx: Any, grad: Tensor, guidance: Tensor | None, outs: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor | None]:
    """Of out = u + sum_j w_j (c_j - u), the branches being stacked over the outs in order."""
    if ctx.batch == 0:
        empty = [torch.zeros(shape, dtype=dtype, device=grad.device) for shape, dtype in ctx.out_shapes]
        return empty, torch.zeros_like(guidance) if ctx.scale_learned and guidance is not None else None
    batch = ctx.batch
    counts = [shape[0] // batch for shape, _ in ctx.out_shapes]
    branches = sum(counts)
    grad_guidance = None
    if branches == 1:
        parts = [grad]
    else:
        assert guidance is not None
        parts = [w * grad for w in _scales(ctx, guidance, branches)]
        parts.append(grad - sum(parts[1:], parts[0]))
        if ctx.scale_learned:
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
