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

from . import conditions
from .adaptive_loop import Buffers, Problem, evaluator
from .ops import _plain_adaptive as layout
from .ops.adaptive import TABLES

__all__ = ["replay"]


@dataclass
class _Step:
    """The n-th accepted step of every sample; of no length, where it got to, for a sample that took fewer. Where the field was
    finite nowhere for a sample, it is evaluated at another's step: nothing comes of that value, but of 0 times the derivative
    at what is not finite, the parameters' gradient would get a nan."""

    live: Tensor  # [B] bool
    source: Tensor | None  # [B] whose step is evaluated; None: everyone's own
    t: Tensor
    h: Tensor
    next: Tensor
    samples: Tensor  # [P] samples and output rows that end or lie inside, one pair for each
    rows: Tensor
    inside: bool


def _wide(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 1))


class _Stepper:
    def __init__(self, problem: Problem, times: Tensor, t_dtype: torch.dtype) -> None:
        self.problem, self.times, self.t_dtype = problem, times, t_dtype
        self.table = TABLES[problem.method].tolist()
        self.facts = [int(value) for value in self.table[layout.FACTS]]
        self.evaluate = evaluator(problem)

    def value(self, x: Tensor, step: _Step, stage: int, cond: dict[str, Any]) -> Tensor:
        field, c = self.problem.field, self.table[layout.TIME][stage]
        at = step.next if c == 1.0 else step.t + c * step.h
        shown = x if field.dtype is None else x.to(field.dtype)
        out = self.evaluate(shown, at.to(self.t_dtype), cond).to(x.dtype)
        return out if field.sign == 1 else -out

    def weighted(self, x: Tensor, k: list[Tensor], weights: list[Tensor]) -> Tensor:
        total = torch.zeros_like(x)
        for value, weight in zip(k, weights, strict=True):
            total = total + _wide(weight.to(x.dtype), x) * value
        return x + total

    def point(self, x: Tensor, k: list[Tensor], step: _Step, stage: int) -> Tensor:
        row = self.table[layout.POINT + stage]
        used = [j for j in range(len(k)) if row[j] != 0.0]
        return self.weighted(x, [k[j] for j in used], [step.h * row[j] for j in used])

    def conditions(self, step: _Step) -> dict[str, Any]:
        source, batch = step.source, len(step.live)
        if source is None:
            return self.problem.cond

        def pick(value: Tensor) -> Tensor:
            """Rows that hold a nan, of the samples whose step is another's. Nothing else: a tensor may belong to all samples
            and have their number's length by chance."""
            if value.dim() == 0 or len(value) != batch or not value.is_floating_point():
                return value
            whose = source.to(value.device)
            other = whose != torch.arange(batch, device=value.device)
            return torch.where(
                _wide(other & value.isnan().reshape(batch, -1).any(1), value), value[whose], value
            )

        return {name: conditions.map_tensors(value, pick) for name, value in self.problem.cond.items()}

    def __call__(self, x: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
        """The states at the step's end, and at the output rows [P, ...]."""
        stages, extra = self.facts[layout.STAGES], self.facts[layout.EXTRA]
        cond, begin = self.conditions(step), x if step.source is None else x[step.source]
        k = [self.value(begin, step, 0, cond)]
        for stage in range(1, stages):
            k.append(self.value(self.point(begin, k, step, stage), step, stage, cond))
        end = self.point(begin, k, step, stages)
        found = end[step.samples]
        if step.inside:
            k.append(self.value(end, step, stages, cond))
            for stage in range(stages + 1, stages + 1 + extra):
                k.append(self.value(self.point(begin, k, step, stage), step, stage, cond))
            at, h, own = self.times[step.rows], step.h[step.samples], step.samples
            theta = (at - step.t[own]) / h
            weights = [h * layout.dense_weight(self.table, self.facts, j, theta) for j in range(len(k))]
            within = self.weighted(begin[own], [value[own] for value in k], weights)
            found = torch.where(_wide(at == step.next[own], x), found, within)
        return torch.where(_wide(step.live, x), end, x), found


def _steps(problem: Problem, b: Buffers) -> list[_Step]:
    """Everything that the host needs to know, read at once."""
    assert b.steps is not None
    accepted = b.column("accepted").cpu()
    batch, most = len(accepted), int(accepted.max()) if len(accepted) else 0
    spans, times, every = b.steps[:, :most].cpu(), b.times.cpu(), torch.arange(batch)
    # [most, B]: the rows after a step's begin, up to and with its end, are `count` from `first`.
    if not most:
        return []
    live = accepted > torch.arange(most)[:, None]
    reached = b.column("t").cpu()
    begin, end = torch.where(live[..., None], spans.transpose(0, 1), reached[:, None]).unbind(2)
    lost = ((b.column("status") == layout.NON_FINITE) & (b.column("nfe") == 1)).cpu()
    way = 1.0 if bool(times[-1] > times[0]) else -1.0
    first = torch.searchsorted(way * times, (way * begin).contiguous(), right=True)
    last = torch.searchsorted(way * times, (way * end).contiguous(), right=True)
    count = torch.where(live, last - first, 0).flatten()
    samples = every.repeat(most).repeat_interleave(count)
    rows = torch.arange(len(samples)) - (count.cumsum(0) - count - first.flatten()).repeat_interleave(count)
    inside = times[rows] != end.flatten().repeat_interleave(count)
    parts = count.reshape(most, batch).sum(1).tolist()
    device, found = b.x.device, []
    of_rows = zip(samples.split(parts), rows.split(parts), inside.split(parts), strict=True)
    for n, (whose, which, within) in enumerate(of_rows):
        source = torch.where(lost, live[n].int().argmax(), every) if bool(lost.any()) else None
        t, stop = (begin[n], end[n]) if source is None else (begin[n][source], end[n][source])
        found.append(
            _Step(
                live[n].to(device),
                None if source is None else source.to(device),
                t.to(device),
                (stop - t).to(device),
                stop.to(device),
                whose.to(device),
                which.to(device),
                bool(within.any()),
            )
        )
    return found


def replay(problem: Problem, b: Buffers) -> Tensor:
    """[len(t), B, ...] as the solve found it, with its graph; where a time was not reached, the last state."""
    step_of, x = _Stepper(problem, b.times, b.t.dtype), problem.x0
    steps, found = _steps(problem, b), []
    for step in steps:
        x, values = checkpoint(step_of, x, step, use_reentrant=False)
        found.append(values)
    rows = torch.cat([problem.x0[None], x.expand(len(b.times) - 1, *x.shape)])
    if not found:
        return rows
    at = torch.cat([step.rows for step in steps]), torch.cat([step.samples for step in steps])
    return rows.index_put(at, torch.cat(found))
