"""Gradients of an adaptive solve: the accepted steps once more, differentiably, each with its length held constant.

What the choice of the lengths depends on has no part in the derivative: it is that of the map which the steps are (Chen et al.
2018 call it discretise-then-optimise; the lengths as constants as in Eichhorn, Walther & Bernelli-Zazzera 1996). One state is
kept for each step, and the stages are computed again on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .adaptive_loop import Buffers, Problem, evaluator
from .ops import _plain_adaptive as layout
from .ops.adaptive import TABLES

__all__ = ["replay"]


@dataclass
class _Step:
    """The n-th accepted step of every sample; of no length for a sample that took fewer."""

    live: Tensor  # [B] bool
    t: Tensor
    h: Tensor
    next: Tensor
    rows: list[tuple[int, Tensor]]  # output rows that end or lie inside, with the samples for which they do
    inside: bool


class _Stepper:
    def __init__(self, problem: Problem, times: Tensor, t_dtype: torch.dtype) -> None:
        self.problem, self.times, self.t_dtype = problem, times, t_dtype
        self.table = TABLES[problem.method].tolist()
        self.facts = [int(value) for value in self.table[layout.FACTS]]
        self.evaluate = evaluator(problem)

    def value(self, x: Tensor, step: _Step, stage: int) -> Tensor:
        field, c = self.problem.field, self.table[layout.TIME][stage]
        at = step.next if c == 1.0 else step.t + c * step.h
        shown = x if field.dtype is None else x.to(field.dtype)
        out = self.evaluate(shown, at.to(self.t_dtype), self.problem.cond).to(x.dtype)
        return out if field.sign == 1 else -out

    def weighted(self, x: Tensor, k: list[Tensor], weights: list[Tensor]) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 1)
        total = torch.zeros_like(x)
        for value, weight in zip(k, weights, strict=True):
            total = total + weight.to(x.dtype).reshape(shape) * value
        return x + total

    def point(self, x: Tensor, k: list[Tensor], step: _Step, stage: int) -> Tensor:
        row = self.table[layout.POINT + stage]
        used = [j for j in range(len(k)) if row[j] != 0.0]
        return self.weighted(x, [k[j] for j in used], [step.h * row[j] for j in used])

    def __call__(self, x: Tensor, step: _Step) -> tuple[Tensor, ...]:
        """The state at the step's end, and the output rows."""
        stages, extra = self.facts[layout.STAGES], self.facts[layout.EXTRA]
        k = [self.value(x, step, 0)]
        for stage in range(1, stages):
            k.append(self.value(self.point(x, k, step, stage), step, stage))
        end = self.point(x, k, step, stages)
        mask = step.live.reshape(-1, *[1] * (x.dim() - 1))
        end = torch.where(mask, end, x)
        if step.inside:
            k.append(self.value(end, step, stages))
            for stage in range(stages + 1, stages + 1 + extra):
                k.append(self.value(self.point(x, k, step, stage), step, stage))
        found = []
        for row, _ in step.rows:
            value = end
            if step.inside:
                theta = torch.where(step.live, (self.times[row] - step.t) / step.h, 0.0)
                weights = [
                    step.h * layout.dense_weight(self.table, self.facts, j, theta) for j in range(len(k))
                ]
                at_end = (self.times[row] == step.next).reshape(mask.shape)
                value = torch.where(at_end, end, self.weighted(x, k, weights))
            found.append(value)
        return (end, *found)


def _steps(problem: Problem, b: Buffers) -> list[_Step]:
    """Everything that the host needs to know, read at once."""
    assert b.steps is not None
    accepted = b.column("accepted")
    most = int(accepted.max()) if len(accepted) else 0
    counts, spans, times = accepted.cpu(), b.steps[:, :most].cpu(), b.times.cpu()
    forward, reached = bool(times[-1] > times[0]), b.column("t").cpu()
    found = []
    for n in range(most):
        live = counts > n
        begin, end = torch.where(live[:, None], spans[:, n], reached[:, None]).unbind(1)
        rows, inside = [], False
        for row in range(1, len(times)):
            after = (times[row] > begin) & (times[row] <= end)
            due = live & (after if forward else (times[row] < begin) & (times[row] >= end))
            if bool(due.any()):
                rows.append((row, due.to(b.x.device)))
                inside = inside or bool((due & (times[row] != end)).any())
        device = b.x.device
        found.append(
            _Step(live.to(device), begin.to(device), (end - begin).to(device), end.to(device), rows, inside)
        )
    return found


def replay(problem: Problem, b: Buffers) -> Tensor:
    """[len(t), B, ...] as the solve found it, with its graph; where a time was not reached, the last state."""
    step_of = _Stepper(problem, b.times, b.t.dtype)
    x = problem.x0
    rows: list[Any] = [x] + [None] * (len(b.times) - 1)
    for step in _steps(problem, b):
        x, *found = checkpoint(step_of, x, step, use_reentrant=False)
        for (row, due), value in zip(step.rows, found, strict=True):
            mask = due.reshape(-1, *[1] * (x.dim() - 1))
            rows[row] = torch.where(mask, value, x if rows[row] is None else rows[row])
    reached = b.column("row")
    for row in range(1, len(rows)):
        waits = (reached <= row).reshape(-1, *[1] * (x.dim() - 1))
        rows[row] = x if rows[row] is None else torch.where(waits, x, rows[row])
    return torch.stack(rows)
