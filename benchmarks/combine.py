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
from benchmarks.rows import KINDS, SCALE, Kind, bytes_of, eager_step, in_place_step, inputs_of, row_of
from pyflowcore import _core

_CPU_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_CUDA_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
_FLOAT32 = (torch.float32, torch.float32)
_DTYPES = ((torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.float64, torch.float64))
_SCHEDULER_STEPS = 1000


@dataclass
class _Operands:
    """One buffer set. Everything is filled with random numbers, outputs too, so that all memory exists."""

    x: torch.Tensor
    out: torch.Tensor
    slots: torch.Tensor | None
    inp: torch.Tensor | None


def _operands(
    kind: Kind, plan: pfc.Plan, n: int, dtypes: tuple[torch.dtype, torch.dtype], device: str
) -> _Operands:
    state, field = dtypes
    batch = 4 if n % 4 == 0 else 1
    shape = (batch, n // batch)

    def fresh(copies: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(copies * batch, n // batch, device=device, dtype=torch.float32).to(dtype)

    inputs = inputs_of(kind, state, field)
    joined = (
        fresh(2, state) if kind.branches == 2 and inputs == 1 else None
    )  # the doubled input, the state its first half
    return _Operands(
        x=fresh(1, state) if joined is None else joined[:batch],
        out=fresh(kind.branches, field),
        slots=fresh(plan.slots, state).reshape(plan.slots, *shape) if plan.slots else None,
        inp=joined[batch:] if joined is not None else fresh(inputs, field) if inputs else None,
    )


def _fused(kind: Kind, table: torch.Tensor, operands: _Operands) -> Callable[[], object]:
    x = operands.x
    guidance = (
        torch.full((table.shape[0], 1), SCALE, dtype=x.dtype, device=x.device) if kind.branches == 2 else None
    )
    seeds = torch.arange(x.shape[0], device=x.device) if kind.noise else None
    op = torch.ops.pyflowcore.combine_.default
    return functools.partial(
        op, x, None, None, operands.inp, operands.slots, operands.out, None, guidance, seeds, table, kind.row
    )


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
    before = operands.x.clone()
    remembered = operands.slots[_slot_read(kind, table)].clone() if operands.slots is not None else before
    xi = None
    if kind.noise:
        xi = pfc.randn(
            range(before.shape[0]), before.shape[1:], dtype=before.dtype, device=device, stream=1, draw=0
        )
    expected, _, _ = eager_step(kind, dtypes[1])(before, remembered, operands.out.to(before.dtype), xi)
    _fused(kind, table, operands)()
    torch.testing.assert_close(operands.x, expected, rtol=1e-5, atol=1e-5)
    if operands.inp is not None:
        inputs = operands.inp.reshape(-1, *expected.shape)
        torch.testing.assert_close(inputs, expected.to(dtypes[1]).expand_as(inputs), rtol=1e-2, atol=1e-2)


def _slot_read(kind: Kind, table: torch.Tensor) -> int:
    """The slot whose prediction the row adds to the state."""
    first = _core.record["b"]
    nonzero = table[kind.row, first : first + _core.record["max_slots"]].nonzero()
    return int(nonzero[0]) if kind.uses_slot else 0


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
        slot = _slot_read(kind, table)

        def old(one: _Operands) -> torch.Tensor:
            return one.slots[slot] if one.slots is not None else one.x

        arms = [
            Arm("combine_", "candidate", [_fused(kind, table, one) for one in operands]),
            Arm(
                "eager",
                "baseline",
                [functools.partial(step, one.x, old(one), one.out, None) for one in operands],
            ),
            Arm(
                "eager in place",
                "baseline",
                [in_place_step(kind, one.x, old(one), one.out, one.inp) for one in operands],
            ),
        ]
        skipped = {}
        first = operands[0]
        fast = compiled(options, name, step, first.x, old(first), first.out, None)
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            calls = [functools.partial(fast, one.x, old(one), one.out, None) for one in operands]
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

    target = (
        "at most 1.35 times the copy" if kind.branches == 2 and n >= 1 << 20 and dtypes == _FLOAT32 else ""
    )
    params = {"kind": kind.name, "n": n, "state": names.split("/")[0], "field": names.split("/")[1]}
    return Case(name, params, read, written, kind.operations * n, heat, build, target=target)


@benchmark(
    "combine",
    summary="One row of a plan: guidance, state, remembered predictions, noise and the next input in one pass.",
    least="every operand once: x read and written; each branch's output and slots read; the next input written where it "
    "is not the state itself, which can be one half of a doubled input; 2 to 5 operations for an element, about 55 for "
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
