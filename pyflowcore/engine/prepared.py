"""What the engine needs besides a call's tensors; kept for each fused field, plan and guidance scale that is a number."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..branches import scales_of, without_branch
from ..calls import Call
from ..field import Field
from ..fuse import FusedField
from ..plans import Plan
from ..program import program_of
from ..row_times import cast_times

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
        held: objects whose identities are part of the key that this is kept under.
    """

    times: Tensor
    table: Tensor
    grid_rows: Tensor
    branches: Tensor
    most: int
    scales: Tensor | None = None
    held: tuple[Any, ...] = ()


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
    constant = guidance is not None and _is_constant(call)
    # By the call's own plan: one that was loaded meets its field's path anew at every call.
    key = (
        id(call.plan), x0.dtype, x0.device, field.sign, id(field.time), field.round_time, field.time_dtype,
        *((id(guidance), scale, len(call.several)) if constant else ()),
    )  # fmt: skip
    kept = _kept.get(field)
    found = None if kept is None else kept.get(key)
    if found is None:
        # Ordinary tensors also where the first call is inside torch.inference_mode().
        with torch.inference_mode(False), torch.no_grad():
            found = _plain(field, plan, x0.dtype)
            if constant:
                found = found._replace(**_guided(call, plan, x0, field.sign))
        found = found._replace(held=(call.plan, guidance if constant else None, field.time))
        # Built, then assigned: another thread sees one whole dictionary or the other.
        _kept[field] = {**dict(list((kept or {}).items())[1 - _MOST :]), key: found}
    if guidance is None or constant:
        return found
    return found._replace(**_guided(call, plan, x0, field.sign))


def _is_constant(call: Call) -> bool:
    """Whether the guidance scales are numbers."""
    assert call.guidance is not None
    scale = call.guidance.scale if call.guidance_scale is None else call.guidance_scale
    return isinstance(scale, (int, float)) and all(
        isinstance(w, (int, float)) for w in call.guidance.weights or ()
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
