"""Log-densities of fused fields on the CPU: the products of the Jacobian ride with the forward pass, inside the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _core, _library
from ..adaptive_loop import Buffers, OneCallField, Problem
from ..calls import check_field
from ..field import Field
from ..fuse import FusedField
from ..plans import Plan
from .divergence import Trace

__all__ = ["FusedDensity", "FusedTrace", "fused_trace"]

_R = _core.record


class FusedTrace(Trace):
    """:class:`Trace` of a fused field by the operator ``network_divergence``.

    Args:
        condition: the network's conditions [B, C], or None.
        probes: as of :class:`Trace`.
    """

    def __init__(self, field: FusedField, condition: Tensor | None, probes: Tensor | None) -> None:
        super().__init__(probes)
        self.field, self.condition = field, condition

    @property
    def engine(self) -> str:
        return "fused network, products inside its kernel"

    def __call__(self, net: Any, x: Tensor, time: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        field = self.field
        out, traces = torch.ops.pyflowcore.network_divergence(
            x,
            time,
            self.condition,
            field.params(x.dtype, x.device),
            field.layers,
            field.features,
            self.probes,
        )
        return out, traces

    def along(self, plan: Plan, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`pyflowcore.likelihood.fixed.integrate`, in one operator call."""
        field = self.field
        check_field(plan, field)
        plan = plan.on(field.path, field.prediction)
        plan.check_range(x.dtype)
        table = plan.table
        if field.sign == -1:
            table = table.clone()
            table[:, _R["q"]] *= -1.0
        end, change = torch.ops.pyflowcore.trajectory_log_prob(
            x, field.map_times(plan.row_times), self.condition, field.params(x.dtype, x.device), field.layers,
            field.features, table, (table[:, _R["evaluates"]] != 0.0).long(), self.probes,
        )  # fmt: skip
        return end, change


class FusedDensity(OneCallField):
    """A fused field with its divergence, over the states [x, integrals] of an adaptive solve, float64.

    Args:
        both: what it computes, for a solve that is a loop after all; sign included.
        trace: of the fused field.
        network_dtype: which the network reads.
        facts: as of :class:`pyflowcore.Field`.
    """

    def __init__(
        self, both: Callable[..., Tensor], trace: FusedTrace, network_dtype: torch.dtype, **facts: Any
    ) -> None:
        super().__init__(both, **facts)
        self.trace, self.network_dtype = trace, network_dtype

    def solve_in_one_call(self, problem: Problem, buffers: Buffers) -> None:
        field, b, probes = self.trace.field, buffers, self.trace.probes
        torch.ops.pyflowcore.network_solve_log_prob_(
            b.x, b.clock, b.counts, b.rows, self.trace.condition, field.params(self.network_dtype), field.layers,
            field.features, None if probes is None else probes.reshape(*probes.shape[:2], -1), b.times, b.table, b.slots,
            problem.max_nfe, float(field.sign),
        )  # fmt: skip


def fused_trace(
    field: Field, x: Tensor, cond: dict[str, Any], probes: Tensor | None, differentiable: bool
) -> FusedTrace | None:
    """For a fused field where there are kernels, which is on the CPU and without gradients; else None."""
    if not isinstance(field, FusedField) or x.device.type != "cpu":
        return None
    if field.precision != "float32":
        raise ValueError(
            f"the field's precision is {field.precision!r}, which is for CUDA; the state is on the CPU, where the arithmetic "
            "is that of the state's dtype (precision='float32')"
        )
    if differentiable or not _library.cpu.live:
        return None
    if x.shape[1:].numel() != field.dim:
        raise ValueError(f"x must have {field.dim} elements a sample, got {list(x.shape)}")
    return FusedTrace(field, field.condition(cond, len(x), x.dtype, x.device), probes)
