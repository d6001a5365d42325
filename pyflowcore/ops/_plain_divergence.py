"""network_divergence and trajectory_log_prob in plain PyTorch: products by forward mode over the tangents."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core, _library
from .. import network as packed
from . import _plain
from .trajectory import point_is_state

_R = _core.record


def _with_traces(
    x: Tensor, t: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, probes: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    flat = x.reshape(x.shape[0], x.shape[1:].numel())
    if not flat.numel():
        count = 1 if probes is None else probes.shape[0]
        return x.clone(), torch.zeros(x.shape[0], count, dtype=torch.float64, device=x.device)
    tangents = (
        torch.eye(flat.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, *flat.shape)
        if probes is None
        else probes.reshape(-1, *flat.shape)
    )

    def product(tangent: Tensor) -> tuple[Tensor, Tensor]:
        net = lambda at: packed.forward(at, t, cond, params, layers, features)  # noqa: E731
        pair = torch.func.jvp(net, (flat,), (tangent,))
        return pair[0], pair[1]

    outs, products = torch.func.vmap(product)(tangents)
    terms = (products.double() * tangents.double()).sum(2).T
    return outs[0].reshape(x.shape).contiguous(), terms.sum(1, keepdim=True) if probes is None else terms


def network_divergence(
    x: Tensor, t: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, probes: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _plain._say(x, "network_divergence")
    return _with_traces(x, t, cond, params, layers, features, probes)


def trajectory_log_prob(
    x0: Tensor, times: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, table: Tensor,
    branches: Tensor, probes: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _plain._say(x0, "trajectory_log_prob")
    x, y, shown = x0.clone(memory_format=torch.contiguous_format), None, 1.0
    count = 1 if probes is None else probes.shape[0]
    change = torch.zeros(x.shape[0], count, dtype=torch.float64, device=x.device)
    slots, sums = (
        [x] * _R["max_slots"],
        [change] * _R["max_slots"],
    )  # one that is not written yet is never read
    for row, (record, evaluates) in enumerate(zip(table.tolist(), branches.tolist(), strict=True)):
        outs: list[Tensor] = []
        step = torch.zeros_like(change)
        store = int(record[_R["store"]])
        if evaluates:
            point = x if y is None else y
            point = point if shown == 1.0 else shown * point
            out, traces = _with_traces(point, times[row], cond, params, layers, features, probes)
            outs = [out]
            d = record[_R["p"]] * x.shape[1:].numel() + record[_R["q"]] * shown * traces
            step = record[_R["b_new"]] * d
        for k in range(_R["max_slots"]):
            if record[_R["b"] + k] != 0.0:
                step = step + record[_R["b"] + k] * sums[k]
        change = change + step
        if store >= 0:
            sums = [d if k == store else kept for k, kept in enumerate(sums)]
        x, following, kept = _plain._row(x, y, slots, outs, None, None, table, row)
        slots = [kept if k == store else slot for k, slot in enumerate(slots)]
        y, shown = None if point_is_state(record) else following, record[_R["in_scale"]]
    return x, change


def register() -> None:
    """Serves every backend that has no kernels of its own."""
    for operator in (network_divergence, trajectory_log_prob):
        _library.definitions.impl(operator.__name__, operator, "CompositeExplicitAutograd")
