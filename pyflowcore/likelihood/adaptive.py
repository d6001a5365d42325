"""The log-density with adaptive steps: state and integral of the divergence are solved as one, each sample by itself."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._library import PyflowcoreWarning
from ..field import Field
from ..solving import solve
from .divergence import Trace
from .fused import FusedDensity, FusedTrace

__all__ = ["Control", "integrate"]


class Control(NamedTuple):
    """The arguments of :func:`pyflowcore.solve` that say how steps are chosen."""

    t: tuple[float, float]
    method: str
    rtol: float | Tensor
    atol: float | Tensor
    max_nfe: int


def integrate(
    control: Control, field: Field, x: Tensor, cond: dict[str, Any], trace: Trace
) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """(the state at the last time, the integral of div u [B, estimates] float64, nfe [B], status [B], what ran) from x at the
    first.

    The steps are those of the state alone: the integral stays out of the error norm. Both are solved in float64 (in float32 the
    integral of many elements' divergence would lose its digits); the network reads its own dtype.
    """
    if field.prediction != "velocity":
        raise ValueError(
            f"field predicts {field.prediction!r}; adaptive steps integrate the velocity: convert it in the network, or give a "
            "plan, which converts every prediction"
        )
    dtype, shape = field.dtype or x.dtype, x.shape[1:]
    elements = shape.numel()

    def both(z: Tensor, time: Tensor, **cond: Any) -> Tensor:
        point = z[:, :elements].reshape(-1, *shape).to(dtype)
        out, traces = trace(field.net, point, time, cond)
        joined = torch.cat([out.to(z.dtype).reshape(len(z), elements), traces], 1)
        return joined if field.sign == 1 else -joined

    facts: dict[str, Any] = {
        "path": field.path, "time": field.time, "time_shape": field.time_shape, "round_time": field.round_time,
        "time_dtype": field.time_dtype or x.dtype,
    }  # fmt: skip
    fused = FusedDensity(both, trace, dtype, **facts) if isinstance(trace, FusedTrace) else None
    start = torch.cat(
        [
            x.double().reshape(len(x), elements),
            torch.zeros(len(x), trace.estimates, dtype=torch.float64, device=x.device),
        ],
        dim=1,
    )
    found = solve(
        fused or Field(both, **facts), start, control.t, control.method, control.rtol, control.atol, cond,
        max_nfe=control.max_nfe, norm_elements=elements if x.numel() else None, enable_grad=trace.differentiable,
    )  # fmt: skip
    # The state of the solve is float64, so its own warning does not come.
    least = float(torch.as_tensor(control.rtol, dtype=torch.float64).min()) if len(x) else 1.0
    if dtype != torch.float64 and least < 1e-6:
        warnings.warn(
            f"rtol is {least:g}, below what float32 resolves (1e-6): the steps will follow rounding errors of the field; give "
            "the state, and the network, in float64",
            PyflowcoreWarning,
            stacklevel=4,
        )
    end = found.x[-1]
    steps = "adaptive steps"
    if fused is not None:
        steps += " in one operator call" if found.engine == "one call" else f" in a {found.engine}"
    state = end[:, :elements].reshape(x.shape).to(x.dtype)
    return state, end[:, elements:], found.nfe, found.status, steps
