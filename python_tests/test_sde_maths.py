"""Solvers that draw noise: everything is affine on Gaussian data, so mean and variance are exact numbers. They are compared
with those of the papers' loops, and with the path's own to measure the order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _core
from reference import catalogue, orders, sde
from reference import paths as reference
from reference.torch_fields import as_net

# An ancestral step adds its noise by a splitting of order 1; with churn the moments keep the order of the steps between.
ORDERS = {"dpmpp_2m_sde": 2, "stochastic_heun": 2, "euler_maruyama": 1, "euler_ancestral": 1, "edm_heun": 2}


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("name", catalogue.STOCHASTIC)
def test_mean_and_variance_are_those_of_the_papers_loop(path, name):
    for grid in (
        reference.lambda_grid(path, 9),
        np.array([0.03, 0.1, 0.3, 0.35, 0.8, 0.9]),
        [0.2, 0.5, 0.9, 1.0],
    ):
        by_plan, by_loop, _ = orders.moments(path, name, grid)
        np.testing.assert_allclose(by_plan, by_loop, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("name", catalogue.STOCHASTIC)
def test_order_of_mean_and_variance(path, name):
    solver = catalogue.STOCHASTIC[name][0]
    errors, slope = orders.measure_moments(path, name)
    if solver == "consistency":
        # It keeps the marginals only for the exact consistency function; its mean is exact, its variance is not.
        assert errors[1] > 1e-3
        return
    assert errors[1] < 2e-2
    assert slope >= ORDERS[solver] - 0.3, (slope, errors)


@pytest.mark.parametrize(
    ("name", "path"), list(zip(catalogue.STOCHASTIC, itertools.cycle(reference.EVERY), strict=False))
)
def test_samples_have_these_moments(name, path):
    """Within 4 standard errors, through the Sampler, for every solver that draws noise; the paths take turns."""
    solver, options = catalogue.STOCHASTIC[name]
    grid, count = reference.lambda_grid(path, 8), 40_000
    (mean, variance), _, _ = orders.moments(path, name, grid)
    gaussian = sde.GaussianMoments(path, 1)
    first_mean, first_variance = gaussian.exact(grid[0])
    start = first_mean + np.sqrt(first_variance) * pfc.randn(range(count), (1,), dtype=torch.float64)

    def velocity(x, t):
        at_zero, at_one = (gaussian.velocity(v * gaussian.unit[0], t)[0] for v in (0.0, 1.0))
        return at_zero + (at_one - at_zero) * x

    plan = pfc.plan(solver, grid=grid, path=path, **options)
    found = pfc.Sampler(plan)(pfc.Field(as_net(velocity), path=path), x0=start, seeds=range(count)).numpy()
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / count)
    assert abs(found.var() - variance) < 4 * variance * np.sqrt(2 / count)


def test_churn_raises_no_more_than_asked():
    """gamma is at most sqrt(2) - 1, and 0 outside [s_min, s_max] and at t = 0."""
    grid = [0.0, 0.1, 0.3, 0.6, 0.9, 1.0]
    plain = [row.t for row in pfc.plan("edm_heun", grid=grid).rows]
    assert [row.t for row in pfc.plan("edm_heun", grid=grid, s_churn=9.0, s_min=1e3).rows] == plain
    assert [row.t for row in pfc.plan("edm_heun", grid=grid, s_churn=9.0, s_max=1e-3).rows] == plain
    raised = pfc.plan("edm_heun", grid=grid, s_churn=9.0, s_min=0.5, s_max=3.0)
    firsts = [row.t for row in raised.rows if row.step != 0 and row.t < grid[row.step + 1]]
    rho = (1 - np.array(grid[1:5])) / np.array(grid[1:5])
    factor = np.where((rho >= 0.5) & (rho <= 3.0), np.sqrt(2), 1.0)
    np.testing.assert_allclose([(1 - t) / t for t in firsts], rho * factor, rtol=1e-12)
    with pytest.raises(ValueError, match=r"s_churn.*highest"):
        pfc.plan("edm_heun", grid=[0.01, 0.5, 1.0], path="vp", s_churn=9.0)


def test_named_diffusions():
    """A name is its function."""
    grid = reference.lambda_grid("trigonometric", 5)
    for name in catalogue.DIFFUSIONS:
        for solver in ("euler_maruyama", "stochastic_heun"):
            by_name = pfc.plan(solver, grid=grid, path="trigonometric", diffusion=name)
            by_function = pfc.plan(
                solver, grid=grid, path="trigonometric", diffusion=sde.diffusion(name, "trigonometric")
            )
            np.testing.assert_allclose(by_name.table, by_function.table, rtol=1e-12, atol=1e-14)
    constant = pfc.plan("euler_maruyama", 5, diffusion=1)
    assert constant == pfc.plan("euler_maruyama", 5, diffusion="constant")
    assert pfc.plan("euler_maruyama", 5) == pfc.plan("euler_maruyama", 5, diffusion="sigma")


def test_every_solver_of_the_table_is_in_the_catalogue():
    tested = {case[0] for case in catalogue.EVERY.values()}
    assert tested == {entry["name"] for entry in _core.solvers()}
