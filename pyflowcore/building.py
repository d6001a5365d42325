"""pfc.plan: a plan from a solver's name, a grid and a field's facts. The formulas live in ``csrc/plan``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core, grids, paths, predictions
from .plans import Plan

__all__ = ["plan", "solvers"]


def solvers() -> dict[str, str]:
    """The known solvers and a line on each."""
    return {entry["name"]: entry["summary"] for entry in _core.solvers()}


def plan(
    solver: str,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    grid: grids.Grid | str | Sequence[float] | npt.NDArray[np.float64] | None = None,
    path: str | paths.Path = "linear",
    prediction: predictions.AnyPrediction = "velocity",
    along: str | paths.Path | None = None,
    last: str = "default",
    order: int | None = None,
    variant: str | None = None,
    start: str | None = None,
    eta: float | None = None,
    diffusion: str | float | Callable[[float], float] | None = None,
    s_churn: float | None = None,
    s_min: float | None = None,
    s_max: float | None = None,
    s_noise: float | None = None,
) -> Plan:
    """Builds a plan.

    Args:
        solver: a name; :func:`solvers` lists them.
        steps: the number of steps; or
        nfe: a number of evaluations of the field: as many steps as fit into it. ``plan.nfe`` says how many it takes. With an
            array of times as the grid neither is needed.
        grid: ``pfc.grids.uniform()`` (default), ``pfc.grids.shifted(3.0)`` or another of ``pfc.grids``, or a strictly
            monotone array of times in [0, 1]. Decreasing times, ``pfc.grids.shifted(3.0).reversed()`` for instance, run
            backwards, from data to noise (inversion): with every deterministic solver; those that draw noise refuse.
        path, prediction: as the field's: ``field.path``, ``field.prediction``.
        along: another path to integrate on than the one that the field was trained on; grid, times and x are then that path's.
            At each evaluation the field is asked at the time of equal lambda = log(alpha / sigma), its input scaled to its own
            path; both ends are exact, and a level that the field's path does not reach is that path's nearest end.
        last: "default" takes the last step first order if the solver has a stage at t = 1 (Heun, RK4), where exact fields are
            singular, as EDM does (Karras et al. 2022, algorithm 1); "full" takes it in full. Solvers in
            lambda = log(alpha / sigma), which is infinite there, are of first order on that step whatever is asked.
        order: of "unipc" (1 to 3, default 2), "deis" (1 to 4, default 3) and "res" (2 or 3, default 2).
        variant: "bh2" (default) or "bh1" of "unipc"; "rho" (default) or "logrho" (as diffusers has it) of "deis".
        start: of the multistep solvers (ab1 to ab4, dpmpp_2m, dpmpp_3m, unipc, deis). "ramp" (default) begins with lower
            orders, which costs no evaluation and keeps the first step's error; "single" begins with Runge-Kutta steps of full
            order, whose evaluations ``plan.nfe`` counts.
        eta: scale of the noise, default 1: of "dpmpp_2m_sde" (0 is dpmpp_2m) and "euler_ancestral" (0 to 1; 0 is DDIM).
        diffusion: w(t) >= 0 of "euler_maruyama" and "stochastic_heun", which integrate dx = (v + w/2 score) dt + sqrt(w) dW:
            "sigma" (default), "sigma/alpha" (infinite where alpha = 0), "constant" (1), "cosine" (cos(pi t) + 1)^2 / 4, "sine"
            sin(pi t)^2, a number, or a function of t. SiT's ``diffusion`` (Ma et al. 2024) is w / 2.
        s_churn, s_min, s_max, s_noise: of "edm_heun" (Karras et al. 2022, algorithm 2); s_churn = 0 (default) adds no noise.
            s_min and s_max are noise levels sigma / alpha, default 0 and infinity; s_noise defaults to 1.

    Raises:
        TypeError, ValueError: an unknown solver (the message lists the known ones), an option that the solver does not take or
            a value that it does not allow, steps <= 0, a grid that is not monotone, a prediction that the path does not
            determine at a time of the grid, decreasing times for a solver that draws noise.
    """
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name, got {type(solver).__name__}")
    known = solvers()
    if solver not in known:
        raise ValueError(f"solver: unknown name {solver!r}, allowed are {', '.join(known)}")
    if last not in ("default", "full"):
        raise ValueError(f"last must be 'default' or 'full', got {last!r}")
    chosen = grids.get(grid)
    trained, kind = paths.get(path), predictions.to_core(predictions.get(prediction))
    on = trained if along is None else paths.get(along, "along")
    other = None if on == trained else on._core

    options = _options(
        order=order, variant=variant, start=start, eta=eta, diffusion=diffusion, s_churn=s_churn, s_min=s_min, s_max=s_max,
        s_noise=s_noise,
    )  # fmt: skip

    def build(count: int) -> _core.Plan:
        times = chosen.times_on(on, count)
        return _core.build_plan(solver, trained._core, kind, times, last == "full", options, other)

    if (fixed := chosen.fixed_steps) is not None:
        if nfe is not None:
            raise ValueError(
                "nfe cannot be asked for when the grid is an array of times: its length says the steps"
            )
        return Plan(build(fixed if steps is None else steps))
    if (steps is None) == (nfe is None):
        raise ValueError(
            f"exactly one of steps and nfe must be given, got {'neither' if steps is None else 'both'}"
        )
    if steps is not None:
        return Plan(build(steps))
    return Plan(_fit(build, nfe, solver))


def _options(**given: Any) -> dict[str, Any]:
    """The solver's options that were given, of the right types; their values are the core's to check."""
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if name == "order":
            if not (number and isinstance(value, (int, np.integer))):
                raise TypeError(f"order must be an integer, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"order must be a positive integer, got {value}")
            options[name] = int(value)
        elif name in ("variant", "start"):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a name, got {type(value).__name__}")
            if name == "start" and value not in ("ramp", "single"):
                raise ValueError(f"start must be 'ramp' or 'single', got {value!r}")
        elif name == "diffusion":
            options[name] = _diffusion(value, number)
        elif not number:
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        else:
            options[name] = float(value)
    return options


def _diffusion(value: Any, number: bool) -> str | Callable[[float], float]:
    if isinstance(value, str):
        return value
    if number:
        constant = float(value)
        return lambda t: constant
    if not callable(value):
        raise TypeError(f"diffusion must be a name, a number or a function of t, got {type(value).__name__}")
    return lambda t: float(value(t))


def _fit(build: Any, nfe: int | None, solver: str) -> _core.Plan:
    """The plan with the most steps that takes at most nfe evaluations."""
    if isinstance(nfe, bool) or not isinstance(nfe, (int, np.integer)):
        raise TypeError(f"nfe must be an integer, got {type(nfe).__name__}")
    if nfe < 1:
        raise ValueError(f"nfe must be a positive integer, got {nfe}")
    stages = next(entry["stages"] for entry in _core.solvers() if entry["name"] == solver)
    steps = max(1, nfe // stages)
    # The number of evaluations grows with that of the steps; full-order starts take more than `stages` a step.
    while (best := build(steps)).nfe > nfe:
        if steps == 1:
            raise ValueError(f"nfe is {nfe}, but one step of {solver} takes {best.nfe}")
        steps -= 1
    while (more := build(steps + 1)).nfe <= nfe:
        steps, best = steps + 1, more
    return best
