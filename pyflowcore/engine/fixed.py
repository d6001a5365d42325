"""A plan on a fused field: every row in one call of the operator ``trajectory``."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .. import conditions
from ..calls import Call
from ..fuse import FusedField
from ..initial import start_of
from ..run import Trajectory
from . import gradient
from .prepared import PRECISIONS, Prepared, prepared

__all__ = ["run"]

_trajectory = torch.ops.pyflowcore.trajectory.default


def run(call: Call) -> Tensor | Trajectory:
    """The samples of a call to which :func:`obstacles` has nothing to say."""
    plan = call.plan.on(call.field.path, call.field.prediction)
    field = cast("FusedField", call.field)
    with torch.set_grad_enabled(call.enable_grad):
        start = start_of(plan, call.begin, enable_grad=call.enable_grad)
        x0 = start.state
        if x0.shape[1:].numel() != field.dim:
            raise ValueError(
                f"the fused network is for samples of {field.dim} elements, the state's have shape {list(x0.shape[1:])}"
            )
        plan.check_range(x0.dtype)
        made = prepared(call, plan, x0)
        branches = _branches(call, made)
        parts = [field.condition(one, x0.shape[0], x0.dtype, x0.device) for one in branches]
        cond = parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(cast("list[Tensor]", parts))
        keep = made.grid_rows if call.return_trajectory else None
        seeds = start.seeds if plan.draws else None
        if call.enable_grad:
            x, states = gradient.differentiable(field, x0, cond, branches, made, seeds, keep)
        else:
            x, states, _ = _trajectory(
                x0, made.times, cond, field.params(x0.dtype, x0.device), field.layers, field.features, made.table,
                made.branches, made.scales, seeds, keep, False, PRECISIONS[field.precision],
            )  # fmt: skip
        if not call.return_trajectory:
            return x
        return Trajectory(torch.tensor(plan.times, dtype=torch.float64), torch.cat([x0[None], states]))


def _branches(call: Call, made: Prepared) -> list[dict[str, Any]]:
    """The keyword arguments of every branch, the unconditional last; of the first alone where no row takes another."""
    if made.most < 2:
        return [{**call.several[0], **call.shared}]
    cond = call.several[0]
    null = {key: conditions.fill(cond[key], call.uncond[key], f"[{key!r}]") for key in cond}
    return [{**one, **call.shared} for one in (*call.several, null)]
