"""Log-densities of fused fields on the CPU: the products of the Jacobian ride with the forward pass, inside the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core, _library
from ..field import Field
from ..fuse import FusedField
from ..plans import Plan
from .divergence import Trace

__all__ = ["FusedTrace", "fused_trace", "integrate"]

_R = _core.record


class FusedTrace(Trace):
    """:class:`Trace` of a fused field by the operator ``network_divergence``."""

    def __init__(self, field: FusedField, probes: Tensor | None) -> None:
        super().__init__(probes)
        self._field = field
        self.probes = probes

    @property
    def engine(self) -> str:
        return "fused network, products in the kernel"

    def __call__(
        self, net: Any, x: Tensor, time: Tensor, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        field = self._field
        return torch.ops.pyflowcore.network_divergence(
            x, time, field.condition(cond, len(x), x.dtype, x.device), field.params(x.dtype, x.device), field.layers,
            field.features, self.probes,
        )  # fmt: skip


def fused_trace(field: Field, x: Tensor, probes: Tensor | None, enable_grad: bool) -> FusedTrace | None:
    """For a fused field where the kernels are: on the CPU, without gradients; else None."""
    kernels = isinstance(field, FusedField) and _library.cpu.live and x.device.type == "cpu"
    if not kernels or enable_grad:
        return None
    assert isinstance(field, FusedField)
    if field.precision != "float32":
        raise ValueError(
            f"field: precision {field.precision!r} is for CUDA, and the state is on {x.device}; fuse with 'float32'"
        )
    return FusedTrace(field, probes)


def integrate(
    plan: Plan, field: FusedField, x: Tensor, cond: dict[str, Any], probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`pyflowcore.likelihood.fixed.integrate`, in one operator call."""
    plan = plan.on(field.path, field.prediction)
    plan.check_range(x.dtype)
    table = plan.table
    if field.sign == -1:
        table = table.clone()
        table[:, _R["q"]] *= -1.0
    end, change = torch.ops.pyflowcore.trajectory_log_prob(
        x, field.map_times(plan.row_times), field.condition(cond, len(x), x.dtype, x.device),
        field.params(x.dtype, x.device), field.layers, field.features, table, plan.table[:, _R["evaluates"]].long(), probes,
    )  # fmt: skip
    return end, change
