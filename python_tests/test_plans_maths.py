"""Closed forms: exact discrete maps on Gaussian data, point data, polynomials, Taylor factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import fields, solvers
from reference import paths as reference
from reference.torch_fields import as_net

STEPPERS = ("euler", "midpoint", "heun", "rk4", "ab2")
X0 = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[None]
UNEVEN = np.array([0.0, 0.07, 0.2, 0.33, 0.61, 0.8, 1.0])
INSIDE = np.array([0.04, 0.07, 0.2, 0.33, 0.61, 0.8, 0.97])


def sample(plan, net, x0=X0, **field):
    return pfc.Sampler(plan)(
        pfc.Field(net, plan.prediction, plan.path, **field), x0=x0, dtype=torch.float64
    ).numpy()


class Affine:
    """slope x + intercept, carried through a solver: the exact discrete map of an affine field."""

    def __init__(self, slope, intercept):
        self.slope, self.intercept = slope, intercept

    def __add__(self, other):
        return Affine(self.slope + other.slope, self.intercept + other.intercept) if other else self

    __radd__ = __add__

    def __sub__(self, other):
        return self + (-1.0) * other if other else self

    def __rmul__(self, factor):
        return Affine(factor * self.slope, factor * self.intercept)


def affine_velocity(path, mean=0.8, std=0.5):
    """u = (alpha' alpha s^2 + sigma sigma') / v (x - alpha m) + alpha' m, written on Affine."""

    def field(x, t):
        alpha, sigma, dalpha, dsigma = (float(c) for c in reference.coefficients(path, t))
        k = (alpha * dalpha * std**2 + sigma * dsigma) / (alpha**2 * std**2 + sigma**2)
        return k * x + Affine(0.0, dalpha * mean - k * alpha * mean)

    return field


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("solver", STEPPERS)
@pytest.mark.parametrize("last", ["default", "full"])
def test_discrete_map_of_gaussian_data(path, solver, last):
    # The VP velocity has no value at t = 1, where a full last step would want it.
    times = UNEVEN * 0.95 if path == "vp" and last == "full" else UNEVEN
    plan = pfc.plan(solver, grid=times, path=path, last=last)
    exact = solvers.solve(solver, affine_velocity(path), Affine(1.0, 0.0), list(times), last == "full")
    found = sample(plan, as_net(fields.gaussian(path).of("velocity")))
    np.testing.assert_allclose(found, exact.slope * X0.numpy() + exact.intercept, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", reference.NAMES)
def test_discrete_map_of_ddim(path):
    times = UNEVEN
    exact = solvers.ddim(fields.gaussian(path).means, X0.numpy(), list(times), path)
    found = sample(
        pfc.plan("ddim", grid=times, path=path, prediction="data"), as_net(fields.gaussian(path).of("data"))
    )
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("solver", [*STEPPERS, "ddim"])
def test_converges_to_the_flow_map(path, solver):
    exact = fields.gaussian_flow(path, X0.numpy(), 0.05, 0.95)
    plan = pfc.plan(solver, grid=np.linspace(0.05, 0.95, 401), path=path)
    found = sample(plan, as_net(fields.gaussian(path).of("velocity")))
    assert np.abs(found - exact).max() < (3e-2 if solver in ("euler", "ddim") else 5e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 17])
@pytest.mark.parametrize("solver", [*STEPPERS, "ddim"])
def test_point_data_on_the_linear_path(solver, steps):
    point = 0.7
    found = sample(pfc.plan(solver, steps), lambda x, t: (point - x) / (1 - t[:, None]))
    np.testing.assert_allclose(found, point, atol=1e-13)


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("prediction", fields.PREDICTIONS)
def test_point_data_by_ddim_on_any_path(path, prediction):
    """The predicted data is the point, so one step lands on it, however coarse the grid."""
    times = [*INSIDE.tolist(), 1.0]
    field = fields.Mixture(path, [0.7], [0.0]).of(prediction)
    found = sample(pfc.plan("ddim", grid=times, path=path, prediction=prediction), as_net(field))
    np.testing.assert_allclose(found, 0.7, atol=1e-12)


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("solver", [*STEPPERS, "ddim"])
def test_every_prediction_gives_one_trajectory(path, solver):
    exact = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])
    found = [
        sample(pfc.plan(solver, grid=INSIDE, path=path, prediction=kind), as_net(exact.of(kind)))
        for kind in fields.PREDICTIONS
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["trigonometric", "vp"])
def test_ddim_is_euler_on_the_linear_path_at_matched_lambda(path):
    times = reference.lambda_grid(path, 12)
    linear = reference.lambda_grid("linear", 12)
    # Any data serves: y = x (1 - r) / sigma is the point of the linear path with the same lambda and the same data.
    x = X0.numpy()
    exact = {name: fields.Mixture(name, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6]) for name in (path, "linear")}
    scale = [(1 - r) / reference.coefficients(path, t)[1] for t, r in zip(times, linear, strict=True)]
    by_ddim = sample(
        pfc.plan("ddim", grid=times, path=path), as_net(exact[path].of("velocity")), torch.from_numpy(x)
    )
    by_euler = sample(
        pfc.plan("euler", grid=linear),
        as_net(exact["linear"].of("velocity")),
        torch.from_numpy(x * float(scale[0])),
    )
    np.testing.assert_allclose(by_ddim * scale[-1], by_euler, rtol=1e-12, atol=1e-12)


def test_ddim_is_euler_on_the_linear_path():
    net = as_net(fields.Mixture("linear", [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6]).of("velocity"))
    found = [sample(pfc.plan(solver, grid=UNEVEN), net) for solver in ("euler", "ddim")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 25])
def test_three_t_squared(steps):
    """dx/dt = 3 t^2 from 0: the quadrature errors in closed form."""
    n = steps
    exact = {
        "euler": 1 - 3 / (2 * n) + 1 / (2 * n**2),
        "midpoint": 1 - 1 / (4 * n**2),
        "heun": 1 + 1 / (2 * n**2),
        # Of order 3 and more: a quadrature that is exact for a parabola.
        **dict.fromkeys(("heun3", "rk3", "ssprk3", "bosh3", "rk4", "rk38", "dopri5", "tsit5", "dopri8"), 1.0),
    }
    if n > 2:
        # Adams-Bashforth k after a start of order k is exact for k >= 3; for k = 2 every later step misses 5/2 h^3.
        exact |= {"ab3": 1.0, "ab4": 1.0, "ab2": 1 - 5 / (2 * n**3) * (n - 1) - 1 / (4 * n**3)}
    for solver, value in exact.items():
        net = lambda x, t: 3 * t[:, None] ** 2 + 0 * x  # noqa: E731
        options = {"start": "single"} if solver.startswith("ab") else {}
        found = sample(
            pfc.plan(solver, n, last="full", **options), net, torch.zeros(1, 1, dtype=torch.float64)
        )
        assert found.item() == pytest.approx(value, abs=2e-14)


@pytest.mark.parametrize("a", [-2.5, -0.4, 1.3])
def test_taylor_factors(a):
    """dx/dt = a x: each step multiplies by the Taylor polynomial of e^(a h) of the method's order, where it has as many stages;
    backwards too."""
    for times in (UNEVEN, UNEVEN[::-1]):
        check_taylor_factors(a, times)


def check_taylor_factors(a, times):
    methods = {
        "euler": 1,
        "midpoint": 2,
        "heun": 2,
        "ralston2": 2,
        "heun3": 3,
        "rk3": 3,
        "ssprk3": 3,
        "rk4": 4,
        "rk38": 4,
    }
    for solver, order in methods.items():
        factor = math.prod(
            sum((a * h) ** k / math.factorial(k) for k in range(order + 1)) for h in np.diff(times)
        )
        found = sample(pfc.plan(solver, grid=times, last="full"), lambda x, t: a * x)
        np.testing.assert_allclose(found, factor * X0.numpy(), rtol=1e-13)


def test_x_t_squared():
    """dx/dt = x t^2 has x(1) = x(0) e^(1/3)."""
    found = sample(pfc.plan("rk4", 40, last="full"), lambda x, t: x * t[:, None] ** 2)
    np.testing.assert_allclose(found, X0.numpy() * math.exp(1 / 3), rtol=1e-8)


@pytest.mark.parametrize("solver", ["heun", "rk4"])
def test_last_step_is_first_order_by_default(solver):
    stages = {"heun": 2, "rk4": 4}[solver]
    assert pfc.plan(solver, 10).nfe == 9 * stages + 1
    assert pfc.plan(solver, 10, last="full").nfe == 10 * stages
    assert pfc.plan(solver, grid=np.linspace(0, 0.99, 11)).nfe == 10 * stages
    assert max(row.t for row in pfc.plan(solver, 10).rows) < 1.0


@pytest.mark.parametrize("nfe", range(1, 26))
@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
def test_nfe_is_the_most_that_fits(solver, nfe):
    try:
        plan = pfc.plan(solver, nfe=nfe)
    except ValueError as error:
        assert str(nfe) in str(error)
        assert pfc.plan(solver, 1).nfe > nfe
        return
    assert plan.nfe <= nfe < pfc.plan(solver, plan.steps + 1).nfe
    assert plan.nfe == sum(row.evaluates for row in plan.rows)
