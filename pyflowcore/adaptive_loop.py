"""The loop of an adaptive solve: the field is evaluated for all samples at once, each at the time and the stage where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .field import Field
from .ops import _plain_adaptive
from .ops._plain_guide import CHUNK
from .ops.adaptive import TABLES, slots

__all__ = ["Problem", "run"]

_adaptive_ = torch.ops.pyflowcore.adaptive_.default
_CLOCK, _COUNTS = _plain_adaptive.CLOCK, _plain_adaptive.COUNTS


@dataclass
class Problem:
    """A solve whose arguments are checked."""

    field: Field
    x0: Tensor
    times: Tensor
    method: str
    rtol: Tensor
    atol: Tensor
    cond: dict[str, Any]
    max_nfe: int
    first_step: float
    compact: bool
    rounds: int | None
    norm_elements: int


class _Buffers:
    """The memory of a solve. Everything but y, t and inp stays where it is when the batch shrinks."""

    def __init__(self, problem: Problem) -> None:
        x0, device = problem.x0, problem.x0.device
        batch = len(x0)
        self.x = x0.detach().clone(memory_format=torch.contiguous_format)
        self.y = self.x.clone()
        self.times = problem.times.to(device)
        self.table = TABLES[problem.method].to(device)
        count = slots(problem.method, len(problem.times) > 2)
        self.k = x0.new_empty((batch, count, *x0.shape[1:]))
        self.rows = x0.new_empty((len(problem.times), *x0.shape))
        self.rows[0] = self.x
        self.clock = torch.zeros(batch, len(_CLOCK), dtype=torch.float64, device=device)
        self.counts = torch.zeros(batch, len(_COUNTS), dtype=torch.int64, device=device)
        for name, value in (("t", self.times[0]), ("error", 1.0), ("first", problem.first_step)):
            self.clock[:, _CLOCK.index(name)] = value
        self.clock[:, _CLOCK.index("rtol")] = problem.rtol.to(device)
        self.clock[:, _CLOCK.index("atol")] = problem.atol.to(device)
        self.counts[:, _COUNTS.index("status")] = _plain_adaptive.UNFINISHED
        self.counts[:, _COUNTS.index("row")] = 1
        self.running = torch.full((1,), batch, dtype=torch.int64, device=device)
        chunks = -(-self.x[0].numel() // CHUNK) if batch else 0
        self.partial = torch.empty(2 * batch * chunks, dtype=torch.float64, device=device)
        field = problem.field
        mapped = (
            field.time is not None or field.round_time or field.path.network_times(problem.times) is not None
        )
        self.t = torch.empty(
            batch, dtype=torch.float64 if mapped else field.time_dtype or x0.dtype, device=device
        )
        self.t.copy_(self.times[0])
        cast = field.dtype is not None and field.dtype != x0.dtype
        self.inp = self.x.to(field.dtype) if cast else None
        self.home: Tensor | None = None

    def column(self, name: str) -> Tensor:
        part, names = (self.clock, _CLOCK) if name in _CLOCK else (self.counts, _COUNTS)
        return part[:, names.index(name)].clone()


def run(problem: Problem) -> dict[str, Any]:
    """The fields of a Solution, but t."""
    b = _Buffers(problem)
    evaluate = _evaluator(problem)
    sign = float(problem.field.sign)
    cond = problem.cond
    done = 0
    while b.x.numel() and (problem.rounds is None or done < problem.rounds):
        f = evaluate(b.y if b.inp is None else b.inp, b.t, cond)
        _adaptive_(
            f, b.x, b.y, b.inp, b.t, b.k, b.clock, b.counts, b.rows, b.running, b.partial, None, b.home, b.times, b.table,
            problem.norm_elements, problem.max_nfe, sign,
        )  # fmt: skip
        done += 1
        if problem.rounds is None and not int(b.running):
            break
    return _result(b, done)


def _result(b: _Buffers, rounds: int) -> dict[str, Any]:
    row = b.column("row")
    waits = torch.arange(len(b.rows), device=row.device)[:, None] >= row
    rows = torch.where(waits.reshape(*waits.shape, *[1] * (b.x.dim() - 1)), b.x, b.rows)
    return {
        "x": rows, "status": b.column("status"), "reached": b.column("t"), "nfe": b.column("nfe"),
        "accepted": b.column("accepted"), "rejected": b.column("rejected"), "rounds": rounds,
        "engine": "batched loop",
    }  # fmt: skip


def _evaluator(problem: Problem) -> Callable[[Tensor, Tensor, dict[str, Any]], Tensor]:
    """The network's output for points y and times t; the sign is the operator's business."""
    field = problem.field
    net, scalar = field.net, field.time_shape == "scalar"
    mapped = field.time is not None or field.round_time or field.path.network_times(problem.times) is not None
    if not mapped and not scalar:
        return lambda y, t, cond: net(y, t, **cond)

    def evaluate(y: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        if mapped:
            t = field.time(t.clone()) if field.time is not None else t
            t = (t.round() if field.round_time else t).to(field.time_dtype or problem.x0.dtype)
        return net(y, t[0] if scalar else t, **cond)

    return evaluate
