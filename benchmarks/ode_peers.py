"""The solvers of PyTorch that users install: flow_matching, torchdiffeq, torchode; each as a call, or why there is none.

Each call does what its user does for every trajectory. What can be made once and used again is made before.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]  # of x and t
Call = Callable[[], Tensor]


class Counted:
    """A field that counts its evaluations."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self._field(x, t)


def missing(module: str) -> str:
    """Why ``module`` cannot be used; empty where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # an import can fail in the package's own dependencies
        return f"{module} cannot be imported: {type(error).__name__}: {error}"
    return ""


def _span(x0: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0], device=x0.device)


def flow_matching_euler(field: Field, x0: Tensor, steps: int) -> Call:
    """ODESolver.sample with a step size."""
    from flow_matching.solver import ODESolver

    solver, span = ODESolver(velocity_model=lambda x, t: field(x, t)), _span(x0)
    return lambda: solver.sample(x_init=x0, step_size=1 / steps, method="euler", time_grid=span)


def flow_matching_dopri5(field: Field, x0: Tensor, tolerance: float) -> Call:
    """ODESolver.sample with tolerances."""
    from flow_matching.solver import ODESolver

    solver, span = ODESolver(velocity_model=lambda x, t: field(x, t)), _span(x0)
    return lambda: solver.sample(
        x_init=x0, step_size=None, method="dopri5", atol=tolerance, rtol=tolerance, time_grid=span
    )


def flow_matching_log_prob(field: Field, x1: Tensor, steps: int) -> Call:
    """ODESolver.compute_likelihood with the exact divergence, Euler steps from 1 to 0, a standard normal source."""
    from flow_matching.solver import ODESolver

    solver = ODESolver(velocity_model=lambda x, t: field(x, t))
    backwards = torch.tensor([1.0, 0.0], device=x1.device)
    constant = 0.5 * x1.shape[1] * math.log(2 * math.pi)

    def log_p0(x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(1) - constant

    def call() -> Tensor:
        # The solver sets requires_grad on the tensor that it is given.
        value: Tensor = solver.compute_likelihood(
            x_1=x1.clone(),
            log_p0=log_p0,
            step_size=1 / steps,
            method="euler",
            time_grid=backwards,
            exact_divergence=True,
        )[1]
        return value

    return call


def torchdiffeq_euler(field: Field, x0: Tensor, steps: int) -> Call:
    """odeint over [0, 1] with a step size: nothing between is kept."""
    from torchdiffeq import odeint

    span = _span(x0)
    options = {"step_size": 1 / steps}
    return lambda: odeint(lambda t, x: field(x, t), x0, span, method="euler", options=options)[-1]


def torchdiffeq_dopri5(field: Field, x0: Tensor, tolerance: float) -> Call:
    """odeint with tolerances: one step size for the whole batch."""
    from torchdiffeq import odeint

    span = _span(x0)
    return lambda: odeint(
        lambda t, x: field(x, t), x0, span, method="dopri5", rtol=tolerance, atol=tolerance
    )[-1]


def torchode_dopri5(field: Field, x0: Tensor, tolerance: float) -> Call:
    """AutoDiffAdjoint with an integral controller: a step size for each sample, as ours."""
    import torchode

    term = torchode.ODETerm(lambda t, x: field(x, t))
    method = torchode.Dopri5(term=term)
    controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    solver: Any = torchode.AutoDiffAdjoint(method, controller)
    begin, end = (torch.full((x0.shape[0],), time, device=x0.device) for time in (0.0, 1.0))

    def call() -> Tensor:
        problem = torchode.InitialValueProblem(y0=x0, t_start=begin, t_end=end, t_eval=None)
        states: Tensor = solver.solve(problem).ys
        return states.reshape(x0.shape)

    return call
