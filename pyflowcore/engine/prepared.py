"""What the engine needs besides a call's tensors; kept for each fused field, plan and guidance of numbers."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

from ..branches import scales_of, without_branch
from ..calls import Call
from ..field import Field
from ..fuse import FusedField
from ..guidance import CFG
from ..plans import Plan
from ..program import program_of
from ..row_times import cast_times
from ..scales import Scale

__all__ = ["Fixed", "Prepared", "prepared"]

_trajectory = torch.ops.pyflowcore.trajectory.default

# Of one field.
_MOST = 16


class Prepared(NamedTuple):
    """The operator's tables.

    Attributes:
        times: the network's, in the precision that the loop passes them in, float64 [rows].
        table: the plan's with the field's sign.
        grid_rows: the rows that complete a step, int64.
        branches: int64 [rows]; ``most`` is the largest.
        scales: of guidance, or None.
        plan: whose identity is part of the key that this is kept under; it may hold functions, and these the field.
    """

    times: Tensor
    table: Tensor
    grid_rows: Tensor
    branches: Tensor
    most: int
    scales: Tensor | None = None
    plan: ReferenceType[Plan] | None = None


class Fixed(NamedTuple):
    """The operator's arguments but for the start, as they are where nothing has a gradient."""

    field: FusedField
    made: Prepared
    params: Tensor
    layers: Tensor
    features: Tensor
    cond: Tensor | None
    seeds: Tensor | None
    keep: Tensor | None
    precision: int

    def trajectory(self, x0: Tensor, keep_points: bool) -> tuple[Tensor, Tensor, Tensor]:
        made = self.made
        return _trajectory(
            x0, made.times, self.cond, self.params, self.layers, self.features, made.table, made.branches, made.scales,
            self.seeds, self.keep, keep_points, self.precision,
        )  # fmt: skip


_kept: WeakKeyDictionary[Field, dict[tuple[Any, ...], Prepared]] = WeakKeyDictionary()


def prepared(call: Call, plan: Plan, x0: Tensor) -> Prepared:
    """The tables of a call that begins at x0; ``plan`` is the call's, with the field's own path and prediction."""
    field, scale = call.field, call.guidance_scale
    guidance = call.guidance if call.guided else None
    if guidance is None and scale is not None:
        _guided(call, plan, x0, field.sign)  # what it refuses
    numbers = None if guidance is None else _numbers(guidance, scale)
    # By the call's own plan: one that was loaded meets its field's path anew at every call.
    key = (
        id(call.plan), x0.dtype, x0.device, field.sign, field.time is None, field.round_time, field.time_dtype,
        *(() if numbers is None else (*numbers, len(call.several), len(x0))),
    )  # fmt: skip
    kept = _kept.get(field)
    found = None if kept is None else kept.get(key)
    if found is None or found.plan is None or found.plan() is not call.plan:
        # Ordinary tensors also where the first call is inside torch.inference_mode().
        with torch.inference_mode(False), torch.no_grad():
            found = _plain(field, plan, x0.dtype)
            if numbers is not None:
                found = found._replace(**_guided(call, plan, x0, field.sign))
        found = found._replace(plan=ref(call.plan))
        # Built, then assigned: another thread sees one whole dictionary or the other.
        others = {other: made for other, made in (kept or {}).items() if other != key}
        _kept[field] = {**dict(list(others.items())[1 - _MOST :]), key: found}
    elif field.time is not None:
        # A function's result may be another one at every call.
        found = found._replace(times=cast_times(plan, field, x0.dtype).double())
    if guidance is None or numbers is not None:
        return found
    return found._replace(**_guided(call, plan, x0, field.sign))


def _numbers(guidance: CFG, override: Scale | None) -> tuple[Any, ...] | None:
    """What guidance is, if its scales are numbers, or lists of a number for each sample; tensors and functions may change."""
    scales: list[Any] = []
    for scale in (guidance.scale if override is None else override, *(guidance.weights or ())):
        scales.append(tuple(scale) if isinstance(scale, (list, tuple)) else scale)
        values = scales[-1] if isinstance(scales[-1], tuple) else (scales[-1],)
        if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values):
            return None
    return (
        *scales,
        guidance.weights is None,
        guidance.interval and tuple(guidance.interval),
        guidance.zero_until,
    )


def _plain(field: Field, plan: Plan, dtype: torch.dtype) -> Prepared:
    """Without guidance."""
    return Prepared(
        cast_times(plan, field, dtype).double(),
        program_of(plan, field.sign).table,
        torch.tensor([i for i, row in enumerate(plan.facts) if row.completes_step], dtype=torch.int64),
        torch.tensor([int(row.evaluates) for row in plan.facts], dtype=torch.int64),
        1,
    )


def _guided(call: Call, plan: Plan, x0: Tensor, sign: int) -> dict[str, Any]:
    """What guidance changes."""
    counts, scales = scales_of(
        plan, call.guidance, x0, call.guided, call.guidance_scale, call.enable_grad, len(call.several)
    )
    branches = [n if row.evaluates else 0 for row, n in zip(plan.facts, counts, strict=True)]
    found = {
        "branches": torch.tensor(branches, dtype=torch.int64),
        "most": max(branches, default=0),
        "scales": scales,
    }
    if zero := without_branch(plan, counts):
        found["table"] = program_of(plan, sign, zero=zero).table
    return found
