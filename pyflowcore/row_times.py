"""The network's time of every row: computed in float64, cast once."""

from __future__ import annotations

import torch
from torch import Tensor

from .field import Field
from .plans import Plan

__all__ = ["cast_times", "no_net", "times_of_rows"]


def cast_times(plan: Plan, field: Field, dtype: torch.dtype) -> Tensor:
    """[rows] on the CPU, in the dtype that the network gets them in for a state of dtype."""
    plan = plan.on(field.path, field.prediction)
    if field.time is not None or (isinstance(field.prediction, str) and field.path.code is not None):
        mapped = field.map_times(plan.row_times)
    else:
        mapped = _own_times(plan, field.round_time)
    return field.cast_times(mapped, dtype)


def times_of_rows(plan: Plan, field: Field, state: Tensor, counts: list[int], stacked: bool) -> list[Tensor]:
    """What the network is called with in each row: [B], stacked [J B], or without dimensions, as the field says."""
    times = cast_times(plan, field, state.dtype).to(state.device)
    if field.time_shape == "scalar":
        return list(times.unbind())
    batch, most = state.shape[0], max(counts) if stacked else 1
    # Expanded, not copied: one number a row, however large the batch is.
    lines = times[:, None].expand(-1, most * batch).unbind()
    if not stacked or min(counts) == most:
        return list(lines)
    return [line[: max(count, 1) * batch] for line, count in zip(lines, counts, strict=True)]


# Its formulas are NumPy's, which a compiled function cannot trace, and it is of plans alone, as program_of.
@torch.compiler.assume_constant_result
def _own_times(plan: Plan, round_time: bool) -> Tensor:
    """The network's times, float64 [rows], of fields whose prediction or path says them."""
    return Field(no_net, plan.prediction, plan.path, round_time=round_time).map_times(plan.row_times)


def no_net(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("this run was started without a field: its caller evaluates the network")
