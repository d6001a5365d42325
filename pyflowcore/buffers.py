"""The memory of one trajectory and how a row runs on it: in place through ``combine_``, or through ``combine`` where
gradients are wanted. Both have the same face: ``inputs(row)``, ``advance(row, ...)``, ``silent(row)``, ``x``, ``set_x``,
``slot_to_fill``, ``point``.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from .guide import Guide
from .ops.combine import mark_written
from .program import Program

__all__ = ["FunctionalBuffers", "InPlaceBuffers"]

# Looked up once: each attribute on the way costs a tenth of the call.
_combine_ = torch.ops.pyflowcore.combine_.default
_combine_mixed_ = torch.ops.pyflowcore.combine_mixed_.default


def is_several(out: Tensor | None, out2: Tensor | None, x: Tensor) -> TypeGuard[Tensor]:
    """Whether a row has branches to guide between: it may have one alone, or none."""
    return out is not None and (out2 is not None or out.shape[0] > x.shape[0])


class InPlaceBuffers:
    """State, next point, field input and slots, allocated once; nothing per step.

    What is shared: the field reads the state itself where nothing has to be cast, scaled or doubled; and where a doubled
    input is needed but the point is always the state (Euler, Adams-Bashforth), the state is the input's first half, which
    saves one of six streams.

    Args:
        branches: for each row, how many branches of the field it takes; stacked in the input if ``stacked``.
        keep_points: ``point(row)`` will be read; else it is valid only where the row itself reads it.
    """

    def __init__(
        self, program: Program, x0: Tensor, branches: list[int], stacked: bool, dtype: torch.dtype,
        guidance: Tensor | None, seeds: Tensor | None, keep_points: bool = False, guide: Guide | None = None,
    ) -> None:  # fmt: skip
        rows = program.facts
        self._guide = guide
        keep_points = keep_points or (guide is not None and guide.uses_point)
        self._table, self._guidance, self._seeds = program.table, guidance, seeds
        batch, most = x0.shape[0], max(branches) if stacked else 1
        moves = any(not row.point_is_state for row in rows)
        cast = dtype != x0.dtype or any(row.in_scale != 1.0 for row in rows)
        self.slots = x0.new_empty((program.slots, *x0.shape)) if program.slots else None
        stack = x0.new_empty((most * batch, *x0.shape[1:]), dtype=dtype) if cast or most > 1 else None
        # The state is the first part of the stack.
        shared = stack is not None and not cast and not moves
        self._begins: list[Tensor] = []
        if stack is not None and batch:
            self._begins.extend(stack.split(batch))
            self.begin(x0)
        if shared and stack is not None:
            self.x, y = stack[:batch], None
        else:
            self.x = x0.clone(memory_format=torch.contiguous_format)
            self._begins.append(self.x)
            y = torch.empty_like(self.x) if moves and (stack is None or cast) else None

        counts = {1, *branches} if stacked else {1}
        # Views are made once for each number of branches: rows share them.
        heads = {} if stack is None else {n: stack[: n * batch] for n in counts}
        targets: dict[int, Tensor | None] = dict(heads)
        if shared:
            targets = {n: head[batch:] if n > 1 else None for n, head in heads.items()}
        self._input: list[Tensor] = []
        self._calls: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
        self._points: list[Tensor] = []
        at_state = True  # the point is the state itself
        for i, row in enumerate(rows):
            here = self.x if at_state else y if y is not None else heads.get(1, self.x)
            self._points.append(here)
            self._input.append(heads[branches[i] if stacked else 1] if heads else here)
            after = row.after
            target, kept = None, None
            if after is not None:
                target = targets.get(branches[after] if stacked else 1)
                # The point is kept in the state's precision only where the next row, or the caller, reads it.
                if (
                    y is not None
                    and not row.point_is_state
                    and (keep_points or not heads or rows[after].p != 0.0)
                ):
                    kept = y
            self._calls.append((None if at_state else here, kept, target))
            at_state = row.point_is_state

        self._result = self.x
        if shared:
            # The samples get memory of their own from the last row, whose point is the state, and not by a copy after it.
            self._result = torch.empty_like(self.x, memory_format=torch.contiguous_format)
            self._calls[-1] = (None, self._result, None)
        # The next point of an edited state is the state itself, where the field reads it.
        self._idle = [i for i in program.y_halves if self._calls[i] == (None, None, None)]

    def begin(self, x0: Tensor) -> None:
        """Puts the trajectory at its start, in the memory that it has."""
        for part in self._begins:
            part.copy_(x0)
        if self._guide is not None:
            self._guide.reset()

    def inputs(self, row: int) -> Tensor:
        """The field's input for a row: [B, ...] or stacked [J B, ...]."""
        return self._input[row]

    def point(self, row: int) -> Tensor:
        """The point that the row evaluates, in the precision that the row will use."""
        return self._points[row]

    def advance(self, row: int, out: Tensor | None, out2: Tensor | None) -> None:
        """Runs a row with the field's output."""
        y, y_out, inp = self._calls[row]
        # A caller's loop may have gradients on; this trajectory has none.
        recorded = (out is not None and out.requires_grad) or (out2 is not None and out2.requires_grad)
        if recorded:
            out = None if out is None else out.detach()
            out2 = None if out2 is None else out2.detach()
        if self._guide is not None and is_several(out, out2, self.x):
            mix = self._guide.weigh(row, self.x, y, out, out2)
            _combine_mixed_(
                self.x,
                y,
                y_out,
                inp,
                self.slots,
                out,
                out2,
                mix,
                self._guide.m,
                self._seeds,
                self._table,
                row,
            )
        else:
            _combine_(
                self.x, y, y_out, inp, self.slots, out, out2, self._guidance, self._seeds, self._table, row
            )
        if recorded:
            # The caller's graph may hold the input that was just overwritten: its backward must fail, not be wrong.
            mark_written(self.x, y_out, inp, self.slots)

    def silent(self, row: int) -> None:
        """Runs a row that evaluates nothing."""
        if row not in self._idle:
            self.advance(row, None, None)

    def set_x(self, x: Tensor) -> None:
        """Replaces the state at a grid point; between the halves of a row."""
        self.x.copy_(x.contiguous())  # a hook may return another view of the state

    def slot_to_fill(self, slot: int) -> Tensor:
        """A slot's memory, to be written."""
        assert self.slots is not None
        return self.slots[slot]

    def result(self) -> Tensor:
        """The samples, once the last row has run; in memory of their own."""
        return self._result


class FunctionalBuffers:
    """New tensors in every row, so that gradients flow through the whole solve."""

    def __init__(
        self, program: Program, x0: Tensor, branches: list[int], stacked: bool, dtype: torch.dtype,
        guidance: Tensor | None, seeds: Tensor | None, keep_points: bool = False, guide: Guide | None = None,
    ) -> None:  # fmt: skip
        self._program, self._guide, self._guidance, self._seeds = program, guide, guidance, seeds
        self._branches, self._stacked, self._dtype = branches, stacked, dtype
        # A copy, so that a field that writes into its input cannot reach the caller's x0.
        self.x, self._y, self._scale = x0.clone(), None, 1.0
        # A slot that is not written yet is never read; any tensor of the shape stands in for it.
        self._slots = [x0.detach()] * program.slots

    def inputs(self, row: int) -> Tensor:
        point = self.point(row)
        point = (point if self._scale == 1.0 else self._scale * point).to(self._dtype)
        count = self._branches[row] if self._stacked else 1
        return point if count == 1 else torch.cat([point] * count)

    def point(self, row: int) -> Tensor:
        return self.x if self._y is None else self._y

    def advance(self, row: int, out: Tensor | None, out2: Tensor | None) -> None:
        now = self._program.facts[row]
        outs = [value for value in (out, out2) if value is not None]
        if self._guide is not None and is_several(out, out2, self.x):
            outs = [self._guide.guided(row, self.point(row), outs, keep=True)]
        x, y, d = torch.ops.pyflowcore.combine(
            self.x, self._y, self._slots, outs, self._guidance, self._seeds, self._program.table, row
        )
        if now.store >= 0:
            self._slots = [d if k == now.store else kept for k, kept in enumerate(self._slots)]
        self.x, self._y, self._scale = x, None if now.point_is_state else y, now.in_scale

    def silent(self, row: int) -> None:
        now = self._program.facts[row]
        if row in self._program.y_halves and now.point_is_state:
            self._scale = now.in_scale
        else:
            self.advance(row, None, None)

    def set_x(self, x: Tensor) -> None:
        self.x = x

    def slot_to_fill(self, slot: int) -> Tensor:
        fresh = torch.empty_like(self.x)
        self._slots = [fresh if k == slot else kept for k, kept in enumerate(self._slots)]
        return fresh

    def result(self) -> Tensor:
        return self.x
