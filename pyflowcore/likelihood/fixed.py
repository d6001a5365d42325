"""The log-density along a plan of fixed steps: the divergence goes through the rows that the velocity goes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..buffers import FunctionalBuffers, InPlaceBuffers
from ..field import Field
from ..plans import Plan
from ..program import Program
from ..sampler import Sampler
from .divergence import Trace

__all__ = ["check_plan", "integrate"]

_R = _core.record


def check_plan(plan: Plan) -> None:
    """Refuses plans whose rows are no quadrature of the velocity, which is what the log-density needs.

    Along dx/dt = u the log-density follows d(log p)/dt = -div u: a sum of velocities with the weights of a quadrature in t
    carries over to divergences as it is. A row that scales the state (a != 1: exponential integrators, which solve a linear
    part of the field exactly) has weights for that linear part, and they are wrong for an integral without it.
    """
    name = f"plan: the log-density cannot follow {plan.solver!r}"
    allowed = "Runge-Kutta and Adams-Bashforth plans (euler, midpoint, heun, rk4, dopri5, ab3, ...) carry it"
    if plan.draws:
        raise ValueError(f"{name}: it draws noise, and a stochastic path has no density to follow; {allowed}")
    scales = bool((plan.table[:, _R["a_minus_1"]] != 0.0).any())
    if plan.working != "velocity" or scales:
        how = "scales the state in its rows" if scales else f"integrates the predicted {plan.working}"
        raise ValueError(f"{name}: it {how} in place of adding velocities; {allowed}")
    weights = plan.table[:, _R["b_new"]] + plan.table[:, _R["b"] : _R["b"] + _R["max_slots"]].sum(1)
    for step, (start, end) in enumerate(zip(plan.times[:-1], plan.times[1:], strict=True)):
        rows = [row for row, facts in enumerate(plan.facts) if facts.step == step]
        total = float(weights[rows].sum())
        if abs(total - (end - start)) > 1e-9:
            raise ValueError(
                f"{name}: the weights of step {step} sum to {total:g}, not to its length {end - start:g}, so they are no "
                f"quadrature; {allowed}"
            )


def integrate(
    plan: Plan, field: Field, x: Tensor, cond: dict[str, Any], trace: Trace
) -> tuple[Tensor, Tensor]:
    """(the state at the plan's last time, the integral of div u over its times [B, estimates] float64) from x at its first."""
    run = Sampler(plan).start(x0=x, field=field, enable_grad=trace.differentiable)
    table = plan.table.clone()
    # The divergence of the prediction comes converted; the integral has no next point.
    table[:, _R["p"]], table[:, _R["q"]] = 0.0, 1.0
    table[:, _R["c"]], table[:, _R["c_minus_1"]] = 1.0, 0.0
    table[:, [_R["e_new"], *range(_R["e"], _R["e"] + _R["max_slots"])]] = 0.0
    facts = tuple(row._replace(p=0.0, in_scale=1.0, point_is_state=True) for row in plan.facts)
    start = torch.zeros(x.shape[0], trace.estimates, dtype=torch.float64, device=x.device)
    kind = FunctionalBuffers if trace.differentiable else InPlaceBuffers
    sums = kind(Program(table, facts, plan.slots), start, [1] * len(facts), False, torch.float64, None, None)
    elements, shown = x[:1].numel(), 1.0
    with torch.set_grad_enabled(trace.differentiable):
        for number, row in enumerate(plan.facts):
            if row.evaluates:
                step = run.next()
                out, traces = trace(field.net, step.x, step.time, cond)
                p, q = (float(plan.table[number, _R[name]]) for name in ("p", "q"))
                # D = p y + q sign net(shown y), so div D = p d + q sign shown tr J.
                run.step(out)
                sums.advance(number, p * elements + (q * field.sign * shown) * traces, None)
            else:
                sums.silent(number)
            shown = row.in_scale
    return run.x, sums.result()
