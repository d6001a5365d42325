"""The row kinds that `combine` is measured on: rows of real plans, and the same arithmetic as a user writes it.

What a row reads and writes follows from its coefficients, so a kind only names a solver and a row of its plan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import pyflowcore as pfc
from pyflowcore import _core

# Philox4x32-10: ten rounds of two wide products, four exclusive ors and two key additions for four words, so about 25
# integer operations for each; Box-Muller: one logarithm, one root, a sine and a cosine for two normals, about 30 each.
OPERATIONS_PER_NORMAL = 55
SCALE = 4.0
STEPS = 10

Tensor = torch.Tensor


@dataclass(frozen=True)
class Kind:
    """A row kind: row ``row`` of the plan of ``solver`` with ``options`` and ten steps, on ``branches`` outputs of the field.

    ``apart``: the field's whole input is memory of its own, though the state could be one half of it.
    ``noise``: a noise coefficient for a row that has none.
    """

    name: str
    solver: str
    row: int
    branches: int = 1
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    apart: bool = False
    noise: float = 0.0


def _guided(name: str, solver: str, row: int, **options: Any) -> Kind:
    return Kind(f"{name}, CFG", solver, row, 2, options)


KINDS = (
    Kind("euler", "euler", 3),
    Kind("euler, CFG", "euler", 3, 2),
    Kind("euler, CFG, input apart", "euler", 3, 2, apart=True),
    Kind("heun, first stage", "heun", 4),
    Kind("heun, second stage", "heun", 5),
    _guided("heun, first stage", "heun", 4),
    _guided("heun, second stage", "heun", 5),
    Kind("ab2", "ab2", 3),
    Kind("ab3", "ab3", 5),
    Kind("ab4", "ab4", 5),
    Kind("rk4, last stage", "rk4", 7),
    _guided("rk4, last stage", "rk4", 7),
    Kind("res, second stage", "res", 6),
    Kind("dpmpp_2m", "dpmpp_2m", 5),
    _guided("dpmpp_2m", "dpmpp_2m", 5),
    _guided("dpmpp_3m", "dpmpp_3m", 5),
    Kind("unipc-2", "unipc", 5),
    _guided("unipc-2", "unipc", 5),
    _guided("unipc-3", "unipc", 5, order=3),
    _guided("deis-3", "deis", 5),
    _guided("deis-4", "deis", 5, order=4),
    Kind("euler, noise", "euler", 3, noise=0.05),
    _guided("dpmpp_2m_sde", "dpmpp_2m_sde", 5),
    Kind("stochastic_heun, first stage", "stochastic_heun", 4),
)


@functools.cache
def _plan(solver: str, options: tuple[tuple[str, Any], ...]) -> pfc.Plan:
    return pfc.plan(solver, steps=STEPS, **dict(options))


def plan_of(kind: Kind) -> pfc.Plan:
    return _plan(kind.solver, tuple(sorted(kind.options.items())))


def row_of(kind: Kind) -> tuple[pfc.Plan, Tensor]:
    """The plan and its table; where the kind has noise of its own, its coefficient is written into the row."""
    plan = plan_of(kind)
    table = plan.table.clone()
    if kind.noise:
        table[kind.row, _core.record["draw"]] = 0.0
        table[kind.row, _core.record["s"]] = kind.noise
    return plan, table


@dataclass(frozen=True)
class Streams:
    """What a row moves, in streams of the state's dtype but for ``outputs`` read and ``inputs`` written, of the field's.

    ``own_point``: it reads a point that is not the state. ``point``: it writes one. ``inputs``: copies of the field's next
    input that are neither the state nor the point.
    """

    state_reads: int
    state_writes: int
    outputs: int
    inputs: int
    own_point: bool
    point: bool
    slots: tuple[int, ...]
    operations: int


def streams_of(
    plan: pfc.Plan, index: int, branches: int, *, apart: bool = False, cast: bool = False, noise: bool = False
) -> Streams:
    """The least that row ``index`` moves in the layout of Sampler. ``cast``: the field's dtype is not the state's.

    A doubled input has the state as its first half if every point of the plan is the state, and nothing is cast.
    """
    row, facts = plan.rows[index], plan.facts
    before = index == 0 or facts[index - 1].point_is_state
    moves = any(not fact.point_is_state for fact in facts)
    slots = tuple(sorted({term.slot for term in (*row.b, *row.e)}))
    draws = len({draw.index for draw in (*row.s, *row.r)}) or int(noise)
    changes = row.a != 1.0 or bool(row.b_new or row.b or row.s or noise)
    point = not row.point_is_state
    after = facts[index].after
    # A stacked or cast input is the point, unless the next row wants it in the state's precision.
    needed = after is not None and facts[after].p != 0.0
    kept = point and (needed if cast else branches == 1)
    apart = apart or cast or (moves and branches == 2)
    inputs = branches if apart else branches - 1
    own_point = not before and row.p != 0.0
    operations = 3 * (branches - 1) + (row.q != 1.0) + 2 * (row.p != 0.0) + OPERATIONS_PER_NORMAL * draws
    for base, fresh, terms, noises in ((row.a, row.b_new, row.b, row.s), (row.c, row.e_new, row.e, row.r)):
        operations += (base not in (0.0, 1.0)) + 2 * (bool(fresh) + len(terms) + len(noises))
    return Streams(
        state_reads=1 + own_point + len(slots),
        state_writes=int(changes) + (row.store >= 0) + kept,
        outputs=branches,
        inputs=inputs,
        own_point=own_point,
        point=kept,
        slots=slots,
        operations=operations + 2 * (noise and not row.s),
    )


def streams(kind: Kind, state: torch.dtype, out: torch.dtype) -> Streams:
    return streams_of(
        plan_of(kind), kind.row, kind.branches, apart=kind.apart, cast=state != out, noise=kind.noise > 0.0
    )


def bytes_of(kind: Kind, n: int, state: torch.dtype, out: torch.dtype) -> tuple[int, int]:
    """The least bytes read and written: every operand once."""
    moved = streams(kind, state, out)
    read = n * (moved.state_reads * state.itemsize + moved.outputs * out.itemsize)
    return read, n * (moved.state_writes * state.itemsize + moved.inputs * out.itemsize)


# As a user writes it. x, y (the point), the remembered predictions that the row reads, out, noise or None ->
# next x, next input, prediction to remember.
Step = Callable[[Tensor, Tensor, list[Tensor], Tensor, "Tensor | None"], tuple[Tensor, Tensor, Tensor]]


def _terms(kind: Kind, which: str) -> list[tuple[int, float]]:
    """(position among the slots that the row reads, coefficient) of b or of e."""
    row = plan_of(kind).rows[kind.row]
    slots = sorted({term.slot for term in (*row.b, *row.e)})
    return [(slots.index(term.slot), term.coefficient) for term in getattr(row, which)]


def noise_of(kind: Kind) -> float:
    row = plan_of(kind).rows[kind.row]
    return kind.noise or (row.s[0].coefficient if row.s else 0.0)


def draw_of(kind: Kind) -> int:
    row = plan_of(kind).rows[kind.row]
    return row.s[0].index if row.s else 0


def eager_step(kind: Kind, out_dtype: torch.dtype) -> Step:
    """Out of place, in the plainest form. The last argument is the noise, drawn where it is None."""
    row = plan_of(kind).rows[kind.row]
    b, e, noise = _terms(kind, "b"), _terms(kind, "e"), noise_of(kind)
    p, q, a, c, b_new, e_new = row.p, row.q, row.a, row.c, row.b_new, row.e_new
    moves, changes = not row.point_is_state, row.a != 1.0 or bool(row.b_new or row.b or noise)

    def step(
        x: Tensor, y: Tensor, old: list[Tensor], out: Tensor, xi: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        d = out
        if kind.branches == 2:
            cond, uncond = out.chunk(2)
            d = uncond + SCALE * (cond - uncond)
        if q != 1.0:
            d = q * d
        if p:
            d = (y if p == 1.0 else p * y) + d
        if changes:
            x = x if a == 1.0 else a * x
            if b_new:
                x = x + b_new * d
            for k, weight in b:
                x = x + weight * old[k]
            if noise:
                x = x + noise * (torch.randn_like(x) if xi is None else xi)
        point = x
        if moves:
            point = (x if c == 1.0 else c * x) + e_new * d
            for k, weight in e:
                point = point + weight * old[k]
        return x, (torch.cat([point, point]) if kind.branches == 2 else point).to(out_dtype), d

    return step


def in_place_step(
    kind: Kind, x: Tensor, y: Tensor, old: list[Tensor], out: Tensor, inp: Tensor | None
) -> Callable[[], None]:
    """The same by hand with as few passes and as little memory as torch's operators allow. A prediction that is to be
    remembered stays where it is made: a user swaps the names, and nothing is copied."""
    row = plan_of(kind).rows[kind.row]
    b, e, noise = _terms(kind, "b"), _terms(kind, "e"), noise_of(kind)
    batch = x.shape[0]
    moves = not row.point_is_state
    made, xi = torch.empty_like(x), torch.empty_like(x)
    point = torch.empty_like(x) if moves else x

    def feed() -> None:
        if inp is not None:
            for first in range(0, inp.shape[0], batch):
                inp[first : first + batch].copy_(point)

    def step() -> None:
        d = out
        if kind.branches == 2:
            d = torch.lerp(out[batch:], out[:batch], SCALE, out=made)
        if row.p == 1.0:
            d = torch.add(y, d, alpha=row.q, out=made)
        elif row.p or row.q != 1.0:
            d = torch.mul(d, row.q, out=made).add_(y, alpha=row.p)
        if row.a != 1.0:
            x.mul_(row.a)
        if row.b_new:
            x.add_(d, alpha=row.b_new)
        for k, weight in b:
            x.add_(old[k], alpha=weight)
        if noise:
            x.add_(xi.normal_(), alpha=noise)
        if moves:
            if row.c == 1.0:
                torch.add(x, d, alpha=row.e_new, out=point)
            else:
                torch.mul(x, row.c, out=point).add_(d, alpha=row.e_new)
            for k, weight in e:
                point.add_(old[k], alpha=weight)
        feed()

    return step
