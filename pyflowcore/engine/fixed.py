"""A plan on a fused field: every row in one call of the operator ``trajectory``."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .. import conditions
from ..calls import Call
from ..fuse.field import FusedField
from ..fuse.lowered import Lowered
from ..fuse.net import PRECISIONS
from ..initial import start_of
from ..run import Trajectory
from . import gradient
from .prepared import Fixed, Prepared, prepared

__all__ = ["run"]


def run(call: Call) -> Tensor | Trajectory:
    """The samples of a call to which :func:`obstacles` has nothing to say."""
    plan = call.plan.on(call.field.path, call.field.prediction)
    field = cast("FusedField", call.field)
    net = field.net.lowered  # once: refresh() may put another in its place meanwhile
    with torch.set_grad_enabled(call.enable_grad):
        start = start_of(plan, call.begin, enable_grad=call.enable_grad)
        x0 = start.state
        if x0.shape[1:].numel() != net.network.dim:
            raise ValueError(
                f"the fused network is for samples of {net.network.dim} elements, the state's have shape {list(x0.shape[1:])}"
            )
        precision = PRECISIONS.index(field.precision)
        if precision and x0.device.type == "cpu":
            raise ValueError(
                f"the field's precision is {field.precision!r}, which is for CUDA; the state is on the CPU, where the "
                "arithmetic is that of the state's dtype (precision='float32')"
            )
        plan.check_range(x0.dtype)
        made = prepared(call, plan, x0)
        branches = _branches(call, made)
        fixed = Fixed(
            field, made, net.params(x0.dtype, x0.device), net.layers, net.features, _conditions(field, net, branches, x0),
            start.seeds if plan.draws else None, made.grid_rows if call.return_trajectory else None, precision,
        )  # fmt: skip
        if call.enable_grad:
            x, states = gradient.differentiable(fixed, x0, branches)
        else:
            x, states, _ = fixed.trajectory(x0, False)
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


def _conditions(field: FusedField, net: Lowered, branches: list[dict[str, Any]], x0: Tensor) -> Tensor | None:
    """[J B, C], the branches stacked."""
    if not net.conditions and not any(branches):
        return None
    batch, dtype, device = x0.shape[0], x0.dtype, x0.device
    parts = [net.condition(field.net.given(one, batch, device), dtype, device) for one in branches]
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(cast("list[Tensor]", parts))
