"""The order of every deterministic solver on every path, measured as MATHS says: float64, an interior grid uniform in
lambda, a field that is neither affine nor autonomous, against DOP853 at 1e-13; the finest pair decides, slope at least
p - 0.3. The plans run in the NumPy executor; test_plan_rows.py has the Sampler agree with it on every one of them."""

from __future__ import annotations

import numpy as np
import pytest

import pyflowcore as pfc
from reference import catalogue, executor, orders
from reference import paths as reference


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("name", catalogue.DETERMINISTIC)
def test_order(path, name):
    solver, options, order = catalogue.DETERMINISTIC[name]
    errors, slope = orders.measure(path, solver, options, orders.counts_of(name))
    assert 1e-11 < errors[1] < (5e-4 if order > 1 else 7e-3), errors
    assert slope >= order - 0.3, (slope, errors)


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("name", catalogue.RAMPED)
def test_order_of_a_ramp(path, name):
    solver, options, order = catalogue.RAMPED[name]
    errors, slope = orders.measure(path, solver, options, (160, 320))
    assert slope >= order - 0.3, (slope, errors)


@pytest.mark.parametrize("name", ["ab3", "ab4", "dpmpp_3m", "deis-3-logrho", "deis-4-rho", "unipc-3-bh1"])
def test_a_ramp_keeps_the_error_of_its_first_step(name):
    """The reason why there is another start: the order stops at 2 (3 for UniPC) on fine grids."""
    solver, options, order = catalogue.RAMPED[name]
    errors, slope = orders.measure("linear", solver, options, (1000, 2000))
    assert slope < order + 0.35, (slope, errors)


def test_a_solver_without_noise_is_its_deterministic_kin():
    """eta = 0 is DPM-Solver++(2M) and DDIM, w = 0 Euler and Heun: the same solution to rounding."""
    mixture, x0, _ = orders.problem("vp")
    grid = reference.lambda_grid("vp", 12)

    def solve(solver, **options):
        plan = pfc.plan(solver, grid=grid, path="vp", **options)
        assert plan.draws == 0
        return executor.run(plan.to_dict(), mixture.of("velocity"), x0)[-1]

    for noisy, options, quiet in (
        ("dpmpp_2m_sde", {"eta": 0}, "dpmpp_2m"), ("euler_ancestral", {"eta": 0.0}, "ddim"),
        ("euler_maruyama", {"diffusion": 0}, "euler"), ("stochastic_heun", {"diffusion": lambda t: 0.0}, "heun"),
    ):  # fmt: skip
        np.testing.assert_allclose(solve(noisy, **options), solve(quiet), rtol=1e-13, atol=1e-13)
