"""network_divergence: a packed network with the trace of its Jacobian; trajectory_log_prob: a whole plan over both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core, _library
from .network import check_network
from .trajectory import _check_rows

__all__ = ["network_divergence", "trajectory_log_prob"]

_library.define(
    "network_divergence(Tensor x, Tensor t, Tensor? cond, Tensor params, Tensor layers, Tensor features, Tensor? probes) -> "
    "(Tensor, Tensor)"
)
_library.define(
    "trajectory_log_prob(Tensor x0, Tensor times, Tensor? cond, Tensor params, Tensor layers, Tensor features, Tensor table, "
    "Tensor branches, Tensor? probes) -> (Tensor, Tensor)"
)

_R = _core.record


def _check_probes(x: Tensor, probes: Tensor | None) -> None:
    if probes is None:
        return
    if probes.dim() != x.dim() + 1 or probes.shape[1:] != x.shape or probes.shape[0] < 1:
        raise ValueError(
            f"probes must be [count, {', '.join(map(str, x.shape))}], got shape {list(probes.shape)}"
        )
    if probes.dtype != x.dtype:
        raise TypeError(f"probes is {probes.dtype}, the state is {x.dtype}; they must agree")
    if probes.device != x.device:
        raise ValueError(f"probes is on {probes.device}, the state is on {x.device}")


def network_divergence(
    x: Tensor, t: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The network at x and t, and the trace of its Jacobian in x. The arguments are those of :func:`network`, and:

    Args:
        probes: [K, B, ...] of x's dtype, for K estimates v . (J v) a sample; None for the exact trace.

    Returns:
        (output of x's shape and dtype, with the bits of :func:`network` on the same device; traces [B, K] or [B, 1], float64).
        No gradient.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    check_network(x, cond, params, layers, features, 0)
    if not t.is_floating_point():
        raise TypeError(f"t must be floating point, got {t.dtype}")
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(f"t must be [{x.shape[0]}] or one time, got shape {list(t.shape)}")
    if cond is not None and cond.shape[0] != x.shape[0]:
        raise ValueError(f"cond has {cond.shape[0]} rows, x has {x.shape[0]} samples")
    _check_probes(x, probes)
    return torch.ops.pyflowcore.network_divergence(x, t, cond, params, layers, features, probes)


def trajectory_log_prob(
    x0: Tensor, times: Tensor, table: Tensor, branches: Tensor, params: Tensor, layers: Tensor, features: Tensor, *,
    cond: Tensor | None = None, probes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every row of a plan's table from x0, and the integral of the divergence by the rows' own weights.

    The arguments are those of :func:`trajectory`; every row that evaluates has one branch, and

    Args:
        table: rows with a = 1 and without noise: Runge-Kutta and Adams-Bashforth plans.
        probes: [K, B, ...] of x0's dtype, held fixed over the trajectory; None for the exact divergence.

    Returns:
        (the state after the last row, with the bits of :func:`trajectory` on the same device; the integral of div u over the
        plan's times [B, K] or [B, 1], summed in float64). No gradient.

    Raises:
        TypeError, ValueError, RuntimeError: naming the argument, what came and what is allowed.
    """
    check_network(x0, cond, params, layers, features, 0, "x0")
    if table.dtype != torch.float64 or table.shape[1:] != (_R["width"],) or table.device.type != "cpu":
        raise ValueError(
            f"table must be float64 [rows, {_R['width']}] on the CPU, got {table.dtype} {list(table.shape)} on {table.device}"
        )
    _check_rows("times", times, torch.float64, len(table))
    _check_rows("branches", branches, torch.int64, len(table))
    _check_probes(x0, probes)
    if not torch.compiler.is_compiling():
        if bool((table[:, _R["a_minus_1"]] != 0.0).any()):
            raise ValueError("table scales the state; a log-density follows rows that add velocities")
        if bool((table[:, _R["s"] : _R["r"] + _R["max_draws"]] != 0.0).any()):
            raise ValueError("table draws noise, and no log-density follows it")
        if not bool((branches == (table[:, _R["evaluates"]] != 0.0)).all()):
            raise ValueError(
                f"branches must be 1 for rows that evaluate and 0 for others, got {branches.tolist()}"
            )
        if cond is not None and cond.shape[0] != x0.shape[0]:
            raise ValueError(f"cond has {cond.shape[0]} rows, x0 has {x0.shape[0]} samples")
    return torch.ops.pyflowcore.trajectory_log_prob(
        x0, times, cond, params, layers, features, table, branches, probes
    )


def _empty(x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    estimates = 1 if probes is None else probes.shape[0]
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((x.shape[0], estimates), dtype=torch.float64, device=x.device),
    )


@torch.library.register_fake("pyflowcore::network_divergence", lib=_library.definitions)
def _fake(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _empty(x, args[-1])


@torch.library.register_fake("pyflowcore::trajectory_log_prob", lib=_library.definitions)
def _fake_trajectory(x0: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _empty(x0, args[-1])
