"""The engines' operators in plain PyTorch: the packed network, and a whole plan as the loop over its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core, _library
from .. import network as packed
from . import _plain
from .trajectory import check_values, point_is_state

_R = _core.record


def network(
    x: Tensor, t: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, precision: int = 0
) -> Tensor:  # fmt: skip
    _plain._say(x, "network")
    if precision != 0:
        raise RuntimeError(f"precision is {precision}: only the CUDA kernels have another than 0 (exact)")
    return packed.forward(x, t, cond, params, layers, features).contiguous()


def trajectory(
    x0: Tensor, times: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, table: Tensor,
    branches: Tensor, guidance: Tensor | None, seeds: Tensor | None, keep_rows: Tensor | None, keep_points: bool = False,
    precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _plain._say(x0, "trajectory")
    check_values(x0, cond, table, branches, guidance, seeds, keep_rows)
    batch = x0.shape[0]
    kept = set() if keep_rows is None else set(keep_rows.tolist())
    states: list[Tensor] = []
    points: list[Tensor] = []
    x, y, scale = x0.clone(memory_format=torch.contiguous_format), None, 1.0
    slots = [x] * _R["max_slots"]  # none is read before it is written
    for row, (record, count) in enumerate(zip(table.tolist(), branches.tolist(), strict=True)):
        outs: list[Tensor] = []
        if count:
            point = x if y is None else y
            if keep_points:
                points.append(point)
            shown = point if scale == 1.0 else scale * point
            if cond is None:
                outs = [network(shown, times[row], None, params, layers, features, precision)] * count
            else:
                stacked = torch.cat([shown] * count) if count > 1 else shown
                out = network(stacked, times[row], cond[: count * batch], params, layers, features, precision)
                outs = list(out.split(batch)) if batch else [out]
        x, following, d = _plain._row(x, y, slots, outs, guidance, seeds, table, row)
        store = int(record[_R["store"]])
        slots = [d if k == store else slot for k, slot in enumerate(slots)]
        y, scale = None if point_is_state(record) else following, record[_R["in_scale"]]
        if row in kept:
            states.append(x)
    return x, _stacked(states, x0), _stacked(points, x0)


def _stacked(tensors: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(tensors) if tensors else like.new_empty((0, *like.shape))


def register() -> None:
    """Serves every backend that has no kernels of its own."""
    for operator in (network, trajectory):
        _library.definitions.impl(operator.__name__, operator, "CompositeExplicitAutograd")
