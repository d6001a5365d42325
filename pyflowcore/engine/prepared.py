"""What the engine needs besides a call's tensors; made once for a plan, a fused field and a guidance scale that is a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..branches import scales_of, without_branch
from ..calls import Call
from ..plans import Plan
from ..program import program_of
from ..row_times import cast_times

if TYPE_CHECKING:
    from ..field import Field

__all__ = ["PRECISIONS", "Prepared", "prepared"]

# A fused field's, by the operators' numbers.
PRECISIONS = {"float32": 0, "tf32": 1, "bfloat16": 2}

# For each field; a field that is never again called with the same plan keeps this many.
_MOST = 16


class Prepared(NamedTuple):
    """The operator's tables.

    Attributes:
        times: the network's, in the precision that the loop would pass them in, float64 [rows].
        table: the plan's with the field's sign.
        branches: int64 [rows]; ``most`` is the largest.
        scales: of guidance, or None.
        grid_rows: the rows that complete a step, int64.
        held: objects whose identities are part of the key.
    """

    times: Tensor
    table: Tensor
    branches: Tensor
    most: int
    scales: Tensor | None
    grid_rows: Tensor
    held: tuple[Any, ...]


_cache: WeakKeyDictionary[Field, dict[tuple[Any, ...], Prepared]] = WeakKeyDictionary()


def prepared(call: Call, plan: Plan, x0: Tensor) -> Prepared:
    """The tables of a call that begins at x0; ``plan`` is the call's, with the field's own path and prediction."""
    field, guidance, scale = call.field, call.guidance, call.guidance_scale
    if not _constant(call):
        return _prepare(call, plan, x0)
    guide = guidance if call.guided else None
    # A saved plan meets its field's path at every call, so the call's own plan is the one to know it by.
    key = (
        id(call.plan), id(guide), scale, len(call.several), x0.dtype, x0.device,
        field.sign, id(field.time), field.round_time, field.time_dtype,
    )  # fmt: skip
    known = _cache.get(field)
    if known is not None and (found := known.get(key)) is not None:
        return found
    # An ordinary tensor also where the first call is inside torch.inference_mode().
    with torch.inference_mode(False), torch.no_grad():
        made = _prepare(call, plan, x0)._replace(held=(call.plan, guide, field.time))
    known = {} if known is None else known
    # Built, then assigned: another thread sees a whole dictionary, the old one or the new.
    _cache[field] = {**dict(list(known.items())[1 - _MOST :]), key: made}
    return made


def _constant(call: Call) -> bool:
    """Whether the guidance scales are numbers, and the same at every call."""
    if not call.guided:
        return call.guidance_scale is None
    guidance = call.guidance
    assert guidance is not None
    scale = guidance.scale if call.guidance_scale is None else call.guidance_scale
    return isinstance(scale, (int, float)) and all(
        isinstance(w, (int, float)) for w in guidance.weights or ()
    )


def _prepare(call: Call, plan: Plan, x0: Tensor) -> Prepared:
    counts, scales = scales_of(
        plan, call.guidance, x0, call.guided, call.guidance_scale, call.enable_grad, len(call.several)
    )
    program = program_of(plan, call.field.sign, zero=without_branch(plan, counts))
    branches = [n if row.evaluates else 0 for row, n in zip(plan.facts, counts, strict=True)]
    return Prepared(
        cast_times(plan, call.field, x0.dtype).double(),
        program.table,
        torch.tensor(branches, dtype=torch.int64),
        max(branches, default=0),
        scales,
        torch.tensor([i for i, row in enumerate(plan.facts) if row.completes_step], dtype=torch.int64),
        (),
    )
