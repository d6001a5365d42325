"""The loop of an adaptive solve: the field is evaluated for all samples at once, each at the time and the stage where it is.

After each evaluation, a round, one operator call (``adaptive_``) does the rest for every sample. The host needs to know one
thing only, whether all have finished. On a CPU it looks after every round, which costs nothing. On a device it looks once in
``_STEPS`` steps, at a copy that was ordered ``_STEPS`` steps before: the device always has work, and the host waits for what
has long been done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _library, conditions
from .field import Field
from .fuse import FusedField
from .ops import _plain_adaptive
from .ops._plain_guide import CHUNK
from .ops.adaptive import TABLES, slots

__all__ = ["Buffers", "OneCallField", "Problem", "run"]

_adaptive_ = torch.ops.pyflowcore.adaptive_.default
_CLOCK, _COUNTS = _plain_adaptive.CLOCK, _plain_adaptive.COUNTS
_STEPS = 2
# The batch shrinks when this share of it has finished: each time costs a copy of the points and the conditions.
_SHRINK = 0.25
Evaluate = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


@dataclass
class Problem:
    """A solve whose arguments are checked."""

    field: Field
    x0: Tensor
    times: Tensor
    method: str
    rtol: float | Tensor
    atol: float | Tensor
    cond: dict[str, Any]
    max_nfe: int
    first_step: float
    compact: bool
    rounds: int | None
    norm_elements: int
    record: bool = False

    def maps_times(self) -> bool:
        """Whether the network's time is another than t."""
        field = self.field
        return field.time is not None or field.round_time or field.path.network_times(self.times) is not None


class Buffers:
    """The memory of a solve. Everything but y, t and inp stays where it is when the batch shrinks."""

    def __init__(self, problem: Problem) -> None:
        x0, device, field = problem.x0, problem.x0.device, problem.field
        batch, count = len(x0), len(problem.times)
        self.x = x0.detach().clone(memory_format=torch.contiguous_format)
        self.y = self.x.clone()
        self.times = problem.times.to(device)
        self.table = TABLES[problem.method]  # the operator's; it stays on the host
        self.slots = slots(problem.method, count > 2)
        self.k = x0.new_empty((batch, self.slots, *x0.shape[1:]))
        self.rows = x0.new_empty((count, *x0.shape))
        self.rows[0] = self.x
        self.clock = torch.zeros(batch, len(_CLOCK), dtype=torch.float64, device=device)
        self.counts = torch.zeros(batch, len(_COUNTS), dtype=torch.int64, device=device)
        for name, value in (("t", self.times[0]), ("error", 1.0), ("first", problem.first_step)):
            self.clock[:, _CLOCK.index(name)] = value
        for name, tolerance in (("rtol", problem.rtol), ("atol", problem.atol)):
            at = tolerance.to(device) if isinstance(tolerance, Tensor) else tolerance
            self.clock[:, _CLOCK.index(name)] = at
        self.counts[:, _COUNTS.index("status")] = _plain_adaptive.UNFINISHED
        self.counts[:, _COUNTS.index("row")] = 1
        self.running = torch.full((1,), batch, dtype=torch.int64, device=device)
        sample = self.x[0].numel() if batch else 0
        self.partial = torch.empty(2 * batch * -(-sample // CHUNK), dtype=torch.float64, device=device)
        self.steps = torch.empty(batch, 64, 2, dtype=torch.float64, device=device) if problem.record else None
        t_dtype = torch.float64 if problem.maps_times() else field.time_dtype or x0.dtype
        self.t = torch.empty(batch, dtype=t_dtype, device=device)
        self.t.copy_(self.times[0])
        cast = field.dtype is not None and field.dtype != x0.dtype
        self.inp = self.x.to(field.dtype) if cast else None
        self.home: Tensor | None = None

    def column(self, name: str) -> Tensor:
        part, names = (self.clock, _CLOCK) if name in _CLOCK else (self.counts, _COUNTS)
        return part[:, names.index(name)].clone()

    def room_for_steps(self, rounds: int, stages: int) -> None:
        """A sample accepts at most one step in `stages` rounds: no look at the counts is needed."""
        if self.steps is not None and rounds // stages + 1 >= self.steps.shape[1]:
            self.steps = torch.cat([self.steps, torch.empty_like(self.steps)], dim=1)

    def shrink(self, cond: dict[str, Any]) -> dict[str, Any]:
        """Leaves the finished samples out of y, t and inp. The conditions of those left, out of cond, those of all samples:
        what has a sample's share is decided by the length of the whole batch, once and for all."""
        home = torch.arange(len(self.x), device=self.x.device) if self.home is None else self.home
        kept = (self.counts[home, _COUNTS.index("status")] == _plain_adaptive.UNFINISHED).nonzero()[:, 0]
        batch = len(self.x)
        left = home[kept]
        self.home, self.y, self.t = left, self.y[kept], self.t[kept]
        self.inp = None if self.inp is None else self.inp[kept]

        def pick(value: Tensor) -> Tensor:
            return value[left.to(value.device)] if value.dim() > 0 and len(value) == batch else value

        return {name: conditions.map_tensors(value, pick) for name, value in cond.items()}


class _Watch:
    """How many samples are still running, as far as the host knows. Counts its looks in `looks`."""

    def __init__(self, running: Tensor, every: int) -> None:
        self.looks = 0
        self.running, self.every = running, every
        self._value = running.numpy() if running.device.type == "cpu" else None
        self._ordered: list[tuple[torch.cuda.Event | None, Tensor]] = []

    def look(self, rounds: int) -> int | None:
        """The number, or None where it is not looked at after so many rounds."""
        if self._value is not None:
            return int(self._value[0])
        if rounds % self.every:
            return None
        found = None
        if self._ordered:
            event, value = self._ordered.pop()
            if event is not None:
                event.synchronize()
            self.looks += 1
            found = int(value)
        self._ordered.append(self._order())
        return found

    def _order(self) -> tuple[torch.cuda.Event | None, Tensor]:
        if self.running.device.type != "cuda":
            return None, self.running.clone()
        value = torch.empty(1, dtype=torch.int64, pin_memory=True)
        value.copy_(self.running, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.running.device))
        return event, value


def run(problem: Problem) -> tuple[Buffers, int]:
    """The buffers when all samples have finished, or the rounds are over; and how many rounds there were."""
    b = Buffers(problem)
    evaluate, sign, cond = evaluator(problem), float(problem.field.sign), problem.cond
    stages = int(TABLES[problem.method][_plain_adaptive.FACTS, _plain_adaptive.STAGES])
    watch = None if problem.rounds is not None else _Watch(b.running, _STEPS * stages)
    done = 0
    while b.x.numel() and (problem.rounds is None or done < problem.rounds):
        b.room_for_steps(done, stages)
        f = evaluate(b.y if b.inp is None else b.inp, b.t, cond)
        _adaptive_(
            f, b.x, b.y, b.inp, b.t, b.k, b.clock, b.counts, b.rows, b.running, b.partial, b.steps, b.home, b.times,
            b.table, problem.norm_elements, problem.max_nfe, sign,
        )  # fmt: skip
        done += 1
        left = None if watch is None else watch.look(done)
        if left == 0:
            break
        if problem.compact and left is not None and left <= (1.0 - _SHRINK) * len(b.y):
            cond = b.shrink(problem.cond)
            if not len(b.y):  # the number was an old one: all have finished since
                break
    return b, done


class OneCallField(Field, ABC):
    """A field over states that hold more than a network's, with an operator of its own that solves it in one call."""

    @abstractmethod
    def solve_in_one_call(self, problem: Problem, buffers: Buffers) -> None:
        """Takes the buffers from the first time to the last; the batch is not empty."""


def why_not_fused(problem: Problem) -> str | None:
    """Why a solve of this field is not one call; None if it is."""
    field = problem.field
    if not isinstance(field, FusedField | OneCallField):
        return "the field is not fused"
    if problem.x0.device.type != "cpu" or not _library.cpu.live:
        return "no kernel for this device"
    if problem.record:
        return "gradients are wanted"
    if problem.rounds is not None:
        return "rounds are given"
    if problem.maps_times():
        return "the field maps times"
    if isinstance(field, OneCallField) or field.precision == "float32":
        return None
    return f"the field's precision is {field.precision}"


@dataclass
class Found:
    """A solve's result: states [times, B, ...], the times reached [B] float64, and status, nfe, accepted and rejected [B]
    int64; ``rounds`` evaluations of the batch by the host."""

    x: Tensor
    reached: Tensor
    counts: tuple[Tensor, ...]
    rounds: int


def run_fused(problem: Problem) -> Found:
    """The solve of a fused field in one call, on a CPU."""
    field, x0, times = problem.field, problem.x0, problem.times.cpu()
    if isinstance(field, OneCallField):
        return _run_one_call(field, problem)
    assert isinstance(field, FusedField)
    batch, tensors = len(x0), {"rtol": problem.rtol, "atol": problem.atol}
    numbers = {name: 1.0 if isinstance(one, Tensor) else one for name, one in tensors.items()}
    numbers |= {"t": float(times[0]), "error": 1.0, "first": problem.first_step}
    clock = torch.tensor([[numbers.get(name, 0.0) for name in _CLOCK]], dtype=torch.float64).repeat(batch, 1)
    for name, one in tensors.items():
        if isinstance(one, Tensor):
            clock[:, _CLOCK.index(name)] = one
    begin = {"status": _plain_adaptive.UNFINISHED, "row": 1}
    counts = torch.tensor([[begin.get(name, 0) for name in _COUNTS]], dtype=torch.int64).repeat(batch, 1)
    x = x0.detach().clone(memory_format=torch.contiguous_format)
    rows = x.new_empty((len(times), *x.shape))
    rows[0] = x
    if x0.numel():
        cond = field.condition(problem.cond, batch, x0.dtype, x0.device)
        torch.ops.pyflowcore.network_solve_.default(
            x, clock, counts, rows, cond, field.params(x0.dtype), field.layers, field.features, times,
            TABLES[problem.method], slots(problem.method, len(times) > 2), problem.norm_elements, problem.max_nfe,
            float(field.sign),
        )  # fmt: skip
    columns = dict(zip(_COUNTS, counts.t().contiguous().unbind(), strict=True))
    if columns["status"].any():
        rows = states(rows, x, columns["row"])
    found = tuple(columns[name] for name in ("status", "nfe", "accepted", "rejected"))
    return Found(rows, clock[:, _CLOCK.index("t")].clone(), found, 0)


def _run_one_call(field: OneCallField, problem: Problem) -> Found:
    b = Buffers(problem)
    if problem.x0.numel():
        field.solve_in_one_call(problem, b)
    counts = tuple(b.column(name) for name in ("status", "nfe", "accepted", "rejected"))
    return Found(states(b.rows, b.x, b.column("row")), b.column("t"), counts, 0)


def states(rows: Tensor, x: Tensor, row: Tensor) -> Tensor:
    """The output rows; where a time was not reached, the state that the sample got to. ``row`` [B]: how many it reached."""
    waits = torch.arange(len(rows), device=row.device)[:, None] >= row
    return torch.where(waits.reshape(*waits.shape, *[1] * (x.dim() - 1)), x, rows)


def evaluator(problem: Problem) -> Evaluate:
    """The network's output for points y and times t; the sign is the operator's business."""
    field = problem.field
    net, scalar = field.net, field.time_shape == "scalar"
    mapped, wanted = problem.maps_times(), field.time_dtype or problem.x0.dtype
    if not mapped and not scalar:
        return lambda y, t, cond: net(y, t, **cond)

    def evaluate(y: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        if mapped:
            t = network_times(field, t).to(wanted)
        return net(y, t[0] if scalar else t, **cond)

    return evaluate


def network_times(field: Field, t: Tensor) -> Tensor:
    """Field.map_times of float64 times, without a look at their values."""
    at = field._default_times(t) if field.time is None else field.time(t.clone())
    if not isinstance(at, Tensor) or at.shape != t.shape:
        what = list(at.shape) if isinstance(at, Tensor) else type(at).__name__
        raise ValueError(f"field's time must keep the shape {list(t.shape)} of the times, it returned {what}")
    return at.double().round() if field.round_time else at.double()
