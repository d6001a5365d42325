"""The gradient of the operator ``trajectory``: its rows in reverse, with every evaluation made once more.

Everything but the network is linear, so backward needs the network's vector-Jacobian products at the points where it was
evaluated, and nothing else. The forward pass keeps these points, one state for each evaluation; backward evaluates the original
module there, one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from ..conditions import map_tensors
from ..ops.trajectory import point_is_state
from .prepared import Fixed
from .same import SameFunction, check_sources, own_tensors

__all__ = ["differentiable"]

_R = _core.record
_HOLE = torch.empty(0)


def differentiable(fixed: Fixed, x0: Tensor, branches: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """(samples, kept states), with gradients in x0, the conditions, the guidance scales, and the module's parameters and
    buffers.

    Args:
        branches: the keyword arguments of every branch; ``fixed.cond`` is made of them.

    Raises:
        RuntimeError: the module's weights are not those that are packed; in backward, that the module computes something else.
    """
    fixed.field.check_fresh()
    given: dict[int, Tensor] = {}
    order: list[int] = []

    def take(tensor: Tensor) -> Tensor:
        given[id(tensor)] = tensor
        order.append(id(tensor))
        return _HOLE

    hollow = [map_tensors(branch, take) for branch in branches]
    number = {key: n for n, key in enumerate(given)}
    own = own_tensors(fixed.field.module)
    arguments = _Arguments(hollow, [number[key] for key in order], len(given), own)
    return _Trajectory.apply(  # type: ignore[no-untyped-call]
        fixed, arguments, x0, fixed.made.scales, *given.values(), *own
    )


class _Arguments(NamedTuple):
    """What the module is called with, without the tensors, which autograd keeps: they may come back as others.

    Attributes:
        branches: the keyword arguments of every branch, empty tensors for tensors; ``places``: the number of each.
        given: how many different tensors the conditions have.
        own: the module's parameters and buffers, themselves: gradients are taken in them.
    """

    branches: list[dict[str, Any]]
    places: list[int]
    given: int
    own: list[Tensor]

    def filled(self, tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The branches with these tensors."""
        place = iter(self.places)
        return [map_tensors(branch, lambda _: tensors[next(place)]) for branch in self.branches]


class _Trajectory(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fixed: Fixed, arguments: _Arguments, x0: Tensor, scales: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x, states, points = fixed.trajectory(x0, True)
        ctx.fixed, ctx.arguments = fixed, arguments
        # All of them, so that autograd notices a weight or a condition that is written before backward.
        ctx.save_for_backward(points, scales, *tensors)
        ctx.set_materialize_grads(False)
        return x, states

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_states: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second derivative (create_graph=True): the gradient through a fused field has none; with the module itself "
                "as the field it has"
            )
        points, scales, *saved = ctx.saved_tensors
        _, _, _, learns_scales, *learns = ctx.needs_input_grad
        sweep = _Sweep(ctx.fixed, ctx.arguments, points, scales, saved, learns, learns_scales)
        if grad_x is None:
            grad_x = points.new_zeros(points.shape[1:])
        grad_x0 = sweep.run(grad_x, grad_states)
        sweep.same.check()
        found = iter(sweep.gathered)
        return None, None, grad_x0, sweep.grad_scales, *(next(found) if wanted else None for wanted in learns)


class _Sweep:
    """The rows in reverse, and the gradients that gather on the way."""

    def __init__(
        self,
        fixed: Fixed,
        arguments: _Arguments,
        points: Tensor,
        scales: Tensor | None,
        saved: Sequence[Tensor],
        learns: Sequence[bool],
        learns_scales: bool,
    ) -> None:
        self._fixed, self._points, self._scales = fixed, points, scales
        self.grad_scales = torch.zeros_like(scales) if learns_scales and scales is not None else None
        # Conditions are the results of what came before; here they are leaves. The module's own tensors stay.
        given = [
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(saved[: arguments.given], learns, strict=False)
        ]
        every = [*given, *arguments.own]
        self._leaves = [tensor for tensor, wanted in zip(every, learns, strict=True) if wanted]
        self._branches = arguments.filled(given)
        self.gathered: list[Tensor | None] = [None] * len(self._leaves)
        self.same = SameFunction(fixed, arguments.own)
        self._looked = False

    def run(self, state: Tensor, grad_states: Tensor | None) -> Tensor:
        """From the gradient of the samples to that of x0."""
        made = self._fixed.made
        kept = [] if self._fixed.keep is None or grad_states is None else self._fixed.keep.tolist()
        records, counts = made.table.tolist(), made.branches.tolist()
        following: Tensor | None = None  # of the point that the row makes, where it is not the state
        slots: dict[int, Tensor] = {}
        evaluation = len(self._points)
        for row in range(len(records) - 1, -1, -1):
            record = records[row]
            if kept and kept[-1] == row:
                assert grad_states is not None
                state = state + grad_states[len(kept) - 1]
                kept.pop()
            if following is not None:
                state = state + record[_R["c"]] * following
            d = slots.pop(int(record[_R["store"]]), None)
            d = _add(d, record[_R["b_new"]], state)
            d = _add(d, record[_R["e_new"]], following)
            for k in range(_R["max_slots"]):
                grad = _add(slots.get(k), record[_R["b"] + k], state)
                grad = _add(grad, record[_R["e"] + k], following)
                if grad is not None:
                    slots[k] = grad
            state = record[_R["a"]] * state
            at_point: Tensor | None = None
            if record[_R["evaluates"]]:
                at_point = _add(None, record[_R["p"]], d)
            if counts[row]:
                evaluation -= 1
                if d is not None and record[_R["q"]] != 0.0:
                    in_scale = records[row - 1][_R["in_scale"]] if row else 1.0
                    through = self._evaluate(row, evaluation, counts[row], in_scale, record[_R["q"]] * d)
                    at_point = _add(at_point, 1.0, through)
            # The row's point is the state before it, or what the row before made of that.
            at_state = row == 0 or point_is_state(records[row - 1])
            following = None if at_state else at_point
            if at_state and at_point is not None:
                state = state + at_point
        return state

    def _evaluate(self, row: int, evaluation: int, count: int, in_scale: float, grad: Tensor) -> Tensor:
        """grad, of the guided output, through guidance and network; returns the gradient of the point."""
        field, times = self._fixed.field, self._fixed.made.times
        with torch.enable_grad():
            point = self._points[evaluation].detach().requires_grad_()
            shown = point if in_scale == 1.0 else in_scale * point
            time = times[row].to(device=point.device, dtype=field.time_dtype or point.dtype)
            if field.time_shape == "batch":
                time = time.expand(len(point))
            with torch.autocast(point.device.type, enabled=False):  # as the operator ran
                outs = [field.net(shown, time, **branch) for branch in self._branches[:count]]
        self.same.compare(row, shown.detach(), outs[0].detach())
        if not self._looked:
            self._looked = True
            check_sources(outs, [point, *self._leaves])
        upstream = [grad] if count == 1 else self._mix(row, [out.detach() for out in outs], grad)
        at_point, *found = torch.autograd.grad(outs, [point, *self._leaves], upstream, allow_unused=True)
        for i, part in enumerate(found):
            if part is not None:
                total = self.gathered[i]
                self.gathered[i] = part if total is None else total + part
        return at_point

    def _mix(self, row: int, outs: list[Tensor], grad: Tensor) -> list[Tensor]:
        """Of u + sum_j w_j (c_j - u): the gradients of the branches; that of the scales is added up."""
        assert self._scales is not None
        lines = self._scales[row].reshape(-1, self._scales.shape[-1])
        shape = (-1,) + (1,) * (grad.dim() - 1)
        parts = [lines[min(j, len(lines) - 1)].reshape(shape) * grad for j in range(len(outs) - 1)]
        if self.grad_scales is not None:
            line = torch.stack([((c - outs[-1]) * grad).flatten(1).sum(1) for c in outs[:-1]])
            line = line.sum(1, keepdim=True) if lines.shape[-1] == 1 else line
            line = line.sum(0, keepdim=True) if len(lines) == 1 else line
            self.grad_scales[row] += line.reshape(self.grad_scales[row].shape)
        return [*parts, grad - sum(parts[1:], parts[0])]


def _add(total: Tensor | None, factor: float, value: Tensor | None) -> Tensor | None:
    """total + factor value, where absent tensors and factors of 0 are left out."""
    if factor == 0.0 or value is None:
        return total
    product = value if factor == 1.0 else factor * value
    return product if total is None else total + product
