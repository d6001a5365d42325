"""Every plan's rows on a linear field (Gaussian data) against the solver as its paper writes it, in NumPy float64, to 1e-12: on
every path, forwards and backwards, with every start. (The papers' loops of solvers that draw noise: test_sde_maths.py.)"""

from __future__ import annotations

import numpy as np
import pytest

import pyflowcore as pfc
from reference import catalogue, executor, fields, multistep, sde, solvers, unipc
from reference import paths as reference

X0 = np.linspace(-2.0, 2.0, 9)
GRID = np.array([0.08, 0.15, 0.3, 0.35, 0.5, 0.7, 0.85])
CASES = {
    name: case[:2]
    for name, case in {**catalogue.DETERMINISTIC, **{f"{n}-ramp": c for n, c in catalogue.RAMPED.items()}}.items()
}  # fmt: skip


class Problem:
    def __init__(self, path):
        self.means = fields.gaussian(path).means
        self.velocity = fields.gaussian(path).of("velocity")


def by_the_paper(solver, options, path, times):
    problem, start = Problem(path), {k: v for k, v in options.items() if k == "start"}
    case = problem, path, X0, list(times)
    if solver in multistep.TABLEAUS:
        return multistep.runge_kutta(solver, *case)
    if solver.startswith("ab"):
        return multistep.adams_bashforth(int(solver[2]), *case, **start)
    if solver.startswith("dpmpp"):
        return multistep.dpm_solver(int(solver[6]), *case, **start)
    if solver == "deis":
        return multistep.deis(options["order"], *case, variant=options["variant"], **start)
    if solver == "res":
        return multistep.res(options["order"], *case)
    if solver == "ddim":
        return solvers.ddim(problem.means, X0, list(times), path)
    if solver == "edm_heun":
        return sde.edm_heun(problem.means, path, X0, list(times), None)
    assert solver == "unipc"
    order, x, started = options["order"], X0, []
    # The corrector gains an order, and so does the start.
    for i in range(order if options["start"] == "single" else 0):
        x = multistep.runge_kutta_step(
            multistep.STARTS[order + 1], problem.velocity, x, times[i], times[i + 1]
        )
        started.append(x)
    return unipc.solve(problem.means, path, X0, list(times), order, options["variant"], started)[-1]


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_papers_solve(path, name):
    solver, options = CASES[name]
    for times in (GRID, GRID[::-1]):
        plan = pfc.plan(solver, grid=times, path=path, **options)
        found = executor.run(plan.to_dict(), Problem(path).velocity, X0)[-1]
        wanted = by_the_paper(solver, options, path, times)
        size = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(found / size, wanted / size, rtol=0, atol=1e-12)
