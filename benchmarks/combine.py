"""One row of a plan in one pass over memory, against the same row in eager PyTorch, compiled, and in diffusers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import pyflowcore as pfc
from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled, euler_scheduler
from benchmarks.registry import Arm, Built, Case, benchmark
from benchmarks.rows import (
    KINDS,
    SCALE,
    Kind,
    bytes_of,
    draw_of,
    eager_step,
    in_place_step,
    noise_of,
    row_of,
    streams,
)
from pyflowcore.ops.randn import STREAMS

_CPU_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_CUDA_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
_FLOAT32 = (torch.float32, torch.float32)
_DTYPES = ((torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.float64, torch.float64))
_SCHEDULER_STEPS = 1000


@dataclass
class _Operands:
    """One buffer set. Everything is filled with random numbers, outputs too, so that all memory exists.

    y: the point where the row evaluated, the state itself or memory of its own; y_out: where it writes the next one.
    """

    x: torch.Tensor
    y: torch.Tensor
    y_out: torch.Tensor | None
    out: torch.Tensor
    slots: torch.Tensor | None
    read: list[torch.Tensor]
    inp: torch.Tensor | None


def _operands(
    kind: Kind, plan: pfc.Plan, n: int, dtypes: tuple[torch.dtype, torch.dtype], device: str
) -> _Operands:
    state, field = dtypes
    batch = 4 if n % 4 == 0 else 1
    shape = (batch, n // batch)
    moved = streams(kind, state, field)

    def fresh(copies: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(copies * batch, n // batch, device=device, dtype=torch.float32).to(dtype)

    inputs = moved.inputs
    joined = (
        fresh(2, state) if kind.branches == 2 and inputs == 1 else None
    )  # the doubled input, the state its first half
    x = fresh(1, state) if joined is None else joined[:batch]
    slots = fresh(plan.slots, state).reshape(plan.slots, *shape) if plan.slots else None
    # As in Sampler, the next point goes where this one was.
    y = fresh(1, state) if moved.own_point or moved.point else x
    return _Operands(
        x=x,
        y=y if moved.own_point else x,
        y_out=y if moved.point else None,
        out=fresh(kind.branches, field),
        slots=slots,
        read=[slots[k] for k in moved.slots] if slots is not None else [],
        inp=joined[batch:] if joined is not None else fresh(inputs, field) if inputs else None,
    )


def _fused(kind: Kind, table: torch.Tensor, operands: _Operands) -> Callable[[], object]:
    x = operands.x
    guidance = (
        torch.full((table.shape[0], 1), SCALE, dtype=x.dtype, device=x.device) if kind.branches == 2 else None
    )
    seeds = torch.arange(x.shape[0], device=x.device) if noise_of(kind) else None
    y = None if operands.y is x else operands.y
    return functools.partial(
        torch.ops.pyflowcore.combine_.default, x, y, operands.y_out, operands.inp, operands.slots, operands.out, None,
        guidance, seeds, table, kind.row,
    )  # fmt: skip


class _Scheduler:
    """diffusers' step with what its pipelines do around it: chunk, guide, step, double and cast the next input."""

    def __init__(self, scheduler: object, kind: Kind, operands: _Operands) -> None:
        self._scheduler: object = scheduler
        self._kind, self._x, self._out = kind, operands.x, operands.out
        self._field = operands.out.dtype
        self._timesteps = list(scheduler.timesteps)  # type: ignore[attr-defined]
        self._next = 0

    def __call__(self) -> torch.Tensor:
        if self._next == len(self._timesteps):
            self._scheduler.set_timesteps(len(self._timesteps))  # type: ignore[attr-defined]
            self._next = 0
        out = self._out
        if self._kind.branches == 2:
            cond, uncond = out.chunk(2)
            out = uncond + SCALE * (cond - uncond)
        x = self._scheduler.step(out, self._timesteps[self._next], self._x, return_dict=False)[0]  # type: ignore[attr-defined]
        self._next += 1
        return (torch.cat([x, x]) if self._kind.branches == 2 else x).to(self._field)


def _check(
    kind: Kind,
    plan: pfc.Plan,
    table: torch.Tensor,
    n: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    device: str,
) -> None:
    """The fused row against the eager one (in the state's dtype) on fresh numbers."""
    operands = _operands(kind, plan, n, dtypes, device)
    before, point = operands.x.clone(), operands.y.clone()
    remembered = [old.clone() for old in operands.read]
    xi = None
    if noise_of(kind):
        xi = pfc.randn(
            range(before.shape[0]), before.shape[1:], dtype=before.dtype, device=device, stream=STREAMS["plan"],
            draw=draw_of(kind),
        )  # fmt: skip
    expected, inputs, made = eager_step(kind, before.dtype)(
        before, point, remembered, operands.out.to(before.dtype), xi
    )
    in_place = [tensor.clone() for tensor in (before, point)]
    if not noise_of(kind):
        own = None if operands.inp is None else torch.empty_like(operands.inp)
        in_place_step(kind, *in_place, remembered, operands.out.to(before.dtype), own)()
        torch.testing.assert_close(in_place[0], expected, rtol=1e-5, atol=1e-5)
    _fused(kind, table, operands)()
    torch.testing.assert_close(operands.x, expected, rtol=1e-5, atol=1e-5)
    store = plan.facts[kind.row].store
    if store >= 0 and operands.slots is not None:
        torch.testing.assert_close(operands.slots[store], made, rtol=1e-5, atol=1e-5)
    batch = before.shape[0]
    if operands.y_out is not None:
        torch.testing.assert_close(operands.y_out, inputs[:batch], rtol=1e-5, atol=1e-5)
    if operands.inp is not None:
        copies = operands.inp.reshape(-1, *expected.shape)
        torch.testing.assert_close(
            copies, inputs[:batch].to(dtypes[1]).expand_as(copies), rtol=1e-2, atol=1e-2
        )


def _case(kind: Kind, n: int, dtypes: tuple[torch.dtype, torch.dtype], options: Options) -> Case:
    state, field = dtypes
    read, written = bytes_of(kind, n, state, field)
    heat, sets = sets_for(read + written, options.device)
    names = "/".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    name = f"{kind.name}, {show_size(n)} elements, {names}"

    def build() -> Built:
        plan, table = row_of(kind)
        operands = [_operands(kind, plan, n, dtypes, options.device) for _ in range(sets)]
        step = eager_step(kind, field)
        arms = [
            Arm("combine_", "candidate", [_fused(kind, table, one) for one in operands]),
            Arm(
                "eager",
                "baseline",
                [functools.partial(step, one.x, one.y, one.read, one.out, None) for one in operands],
            ),
            Arm(
                "eager in place",
                "baseline",
                [in_place_step(kind, one.x, one.y, one.read, one.out, one.inp) for one in operands],
            ),
        ]
        skipped = {}
        first = operands[0]
        fast = compiled(options, name, step, first.x, first.y, first.read, first.out, None)
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            calls = [functools.partial(fast, one.x, one.y, one.read, one.out, None) for one in operands]
            arms.append(Arm("torch.compile", "baseline", calls))
        if kind.solver == "euler" and not kind.noise and state == torch.float32:
            schedulers = [euler_scheduler(_SCHEDULER_STEPS) for _ in operands]
            if isinstance(schedulers[0], str):
                skipped["diffusers Euler"] = schedulers[0]
            else:
                steps = [_Scheduler(one, kind, own) for one, own in zip(schedulers, operands, strict=True)]
                arms.append(Arm("diffusers Euler", "baseline", steps))
        arms += copy_arms(read + written, options.device, options.threads, rotate=heat == "rotated")
        return Built(
            arms,
            skipped,
            functools.partial(_check, kind, plan, table, min(n, 1 << 16), dtypes, options.device),
        )

    limit = 1.35 if kind.solver == "euler" and kind.branches == 2 else 1.4
    target = f"at most {limit} times the copy" if n >= 1 << 20 and dtypes == _FLOAT32 else ""
    params = {"kind": kind.name, "n": n, "state": names.split("/")[0], "field": names.split("/")[1]}
    return Case(
        name, params, read, written, streams(kind, state, field).operations * n, heat, build, target=target
    )


@benchmark(
    "combine",
    summary="One row of a plan: guidance, state, remembered predictions, noise and the next input in one pass.",
    least="every operand once: x read and written; each branch's output and slots read; the next input written where it "
    "is not the state itself, which can be one half of a doubled input; 2 to 15 operations for an element, about 55 for "
    "each normal",
    baselines=("eager", "eager in place", "torch.compile", "diffusers Euler", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """All row kinds in float32; Euler with CFG also with half-precision fields and in float64."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for kind in KINDS:
            yield _case(kind, n, _FLOAT32, options)
        for dtypes in _DTYPES:
            yield _case(KINDS[1], n, dtypes, options)
