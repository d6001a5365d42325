"""Program: the rows that a trajectory executes. They are the plan's; taken apart where something happens between a row's
state and its next point, and with slots in place of draws where the noise is given. The kernel knows of neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _core
from .plans import Plan, RowFacts

__all__ = ["Program", "draws_as_slots", "halves", "program_of"]

_R = _core.record


class Program(NamedTuple):
    """What buffers run.

    Attributes:
        table: float64 [rows, 56], as ``plan.table``.
        facts: of each row.
        slots: how many predictions, and given draws, are kept.
        origin: for each row the plan's row that it comes from; None where the rows are the plan's.
        fills: for each row the (slot, draw index) pairs to be filled with given noise before it runs; empty without.
        y_halves: the rows that make the next point from an edited state, and nothing else.
    """

    table: Tensor
    facts: tuple[RowFacts, ...]
    slots: int
    origin: tuple[int, ...] | None = None
    fills: tuple[tuple[tuple[int, int], ...], ...] = ()
    y_halves: tuple[int, ...] = ()

    def draws(self) -> list[int]:
        """The draws that are to be given."""
        return [draw for fill in self.fills for _, draw in fill]

    def spread(self, values: list) -> list:  # type: ignore[type-arg]
        """What is listed for the plan's rows, listed for these."""
        return values if self.origin is None else [values[row] for row in self.origin]

    def spread_rows(self, tensor: Tensor) -> Tensor:
        """The same for a tensor whose first dimension is the plan's rows."""
        return tensor if self.origin is None else tensor[list(self.origin)]


# Of plans and numbers alone, so a compiled function may take what it returned when it was traced.
@torch.compiler.assume_constant_result
def program_of(
    plan: Plan, sign: int, *, zero: tuple[int, ...] = (), edited: bool = False, given: bool = False
) -> Program:
    """The plan's rows, for a field that predicts the plan's prediction (sign 1) or its negative (-1); those of ``zero`` predict
    from their point alone; in halves for a state that is edited, and with slots for draws that are given."""
    table = plan.table
    if sign == -1 or zero:
        table = table.clone()
        table[:, _R["q"]] *= sign
        table[list(zero), _R["q"]] = 0.0
    program = Program(table, plan.facts, plan.slots)
    if edited:
        program = halves(program, plan.times)
    return draws_as_slots(program) if given else program


def halves(program: Program, times: Sequence[float]) -> Program:
    """Each row that completes a step as two: its x half, after which the state may be edited, and its y half, which makes the
    next point from the edited state. The arithmetic is the row's own, so an edit that changes nothing changes no bit.

    A prediction that the next point needs and no slot keeps gets a slot more (no built-in solver has such a row).

    Raises:
        ValueError: that slot would be one too many.
    """
    origin: list[int] = []
    facts: list[RowFacts] = []
    first: list[int] = []  # the rows that are x halves; their y halves follow
    for i, row in enumerate(program.facts):
        origin.append(i)
        if not row.completes_step:
            facts.append(row)
            continue
        first.append(len(facts))
        origin.append(i)
        facts.append(row._replace(point_is_state=True, in_scale=1.0, after=None))
        facts.append(
            row._replace(evaluates=False, t=times[row.step + 1], completes_step=False, p=0.0, store=-1)
        )
    table = program.table[origin]
    x = torch.tensor(first, dtype=torch.int64)
    slots, maximum = program.slots, _R["max_slots"]
    kept = table[x, _R["store"]]
    if bool(((table[x, _R["e_new"]] != 0.0) & (kept < 0.0)).any()):
        if slots == maximum:
            raise ValueError(
                f"an edit between a row's state and its next point needs a slot more than the plan's {slots}; {maximum} are "
                "allowed"
            )
        lacking = (table[x, _R["e_new"]] != 0.0) & (kept < 0.0)
        kept = torch.where(lacking, float(slots), kept)
        slots += 1
    _write_halves(table, x, kept)
    for i, at in enumerate(first):
        facts[at] = facts[at]._replace(store=int(kept[i]))
    return Program(table, _with_after(facts), slots, tuple(origin), y_halves=tuple(i + 1 for i in first))


def _write_halves(table: Tensor, x: Tensor, kept: Tensor) -> None:
    y = x + 1
    draws, slots = _R["max_draws"], _R["max_slots"]
    e, r = slice(_R["e"], _R["e"] + slots), slice(_R["r"], _R["r"] + draws)
    b, s = slice(_R["b"], _R["b"] + slots), slice(_R["s"], _R["s"] + draws)
    fresh = table[x, _R["e_new"]]
    # x <- as it was, y <- x
    table[x, _R["store"]] = kept
    table[x, _R["in_scale"]] = table[x, _R["c"]] = 1.0
    table[x, _R["c_minus_1"]] = table[x, _R["e_new"]] = 0.0
    table[x, e] = 0.0
    table[x, r] = 0.0
    # x <- x, y <- as it was, its own prediction read from the slot that kept it
    table[y, _R["evaluates"]] = table[y, _R["p"]] = table[y, _R["b_new"]] = table[y, _R["e_new"]] = 0.0
    table[y, _R["store"]] = -1.0
    table[y, _R["a"]] = 1.0
    table[y, _R["a_minus_1"]] = 0.0
    table[y, b] = 0.0
    table[y, s] = 0.0
    uses = fresh != 0.0
    table[y[uses], _R["e"] + kept[uses].long()] = fresh[uses]


def _with_after(facts: list[RowFacts]) -> tuple[RowFacts, ...]:
    """Each row's next evaluation, for the rows that write a point: an x half does not."""
    after: int | None = None
    for i in range(len(facts) - 1, -1, -1):
        x_half = facts[i].completes_step
        facts[i] = facts[i]._replace(after=None if x_half else after)
        after = i if facts[i].evaluates else after
    return tuple(facts)


def draws_as_slots(program: Program) -> Program:
    """The draws as further slots, which the buffers fill with given noise before the row that names it first.

    A slot is used again once no later row names its draw.

    Raises:
        ValueError: slots and draws together are more than a row may have.
    """
    table = program.table.clone()
    draws = slice(_R["draw"], _R["draw"] + _R["max_draws"])
    named = [_draws_of(record) for record in table.tolist()]
    last = {index: row for row, entries in enumerate(named) for index, _, _ in entries}
    place: dict[int, int] = {}
    most, fills = program.slots, []
    for row, entries in enumerate(named):
        fill = []
        for index, s, r in sorted(entries):
            if index not in place:
                place[index] = next(k for k in range(program.slots, most + 1) if k not in place.values())
                most = max(most, place[index] + 1)
                fill.append((place[index], index))
            if most > _R["max_slots"]:
                raise ValueError(
                    f"noise: given noise takes a slot for each draw beside the plan's {program.slots}, row {row} would need "
                    f"{most}, allowed are {_R['max_slots']}; draw from seeds instead"
                )
            table[row, _R["b"] + place[index]] = s
            table[row, _R["e"] + place[index]] = r
        for index in [index for index in place if last[index] == row]:
            del place[index]
        fills.append(tuple(fill))
    table[:, draws] = -1.0
    table[:, _R["s"] : _R["s"] + _R["max_draws"]] = 0.0
    table[:, _R["r"] : _R["r"] + _R["max_draws"]] = 0.0
    return program._replace(table=table, slots=most, fills=tuple(fills))


def _draws_of(record: list[float]) -> list[tuple[int, float, float]]:
    """(index, coefficient in the state, coefficient in the next point) of a row's draws."""
    found = []
    for n in range(_R["max_draws"]):
        s, r = record[_R["s"] + n], record[_R["r"] + n]
        if s != 0.0 or r != 0.0:
            found.append((int(record[_R["draw"] + n]), s, r))
    return found
