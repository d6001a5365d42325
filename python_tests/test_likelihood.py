"""Log-densities against closed forms: full Gaussians, mixtures, closed forms 6 and 7 of the maths; sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

import pyflowcore as pfc
from reference.torch_fields import Mixture

BACK = pfc.grids.uniform().reversed()


def back(solver, steps, **options):
    return pfc.plan(solver, steps, grid=BACK, **options)


def growth(x, t):
    """dx/dt = x t^2, MATHS' closed form 6."""
    return x * t.reshape(-1, *[1] * (x.dim() - 1)) ** 2


def grown(x1):
    """log p_1(x1) = log p_0(x1 e^{-1/3}) - d/3."""
    x0 = (x1 * math.exp(-1.0 / 3.0)).flatten(1).double()
    return Normal(0.0, 1.0).log_prob(x0).sum(1) - x0.shape[1] / 3.0


class Gaussian:
    """Data N(m, C) with a full covariance on the linear path: u = m + (t C - (1 - t)) V^-1 (x - t m), V = t^2 C + (1 - t)^2."""

    def __init__(self, dim):
        rng = np.random.default_rng(3)
        half = rng.normal(size=(dim, dim)) / math.sqrt(dim)
        self.m = torch.from_numpy(rng.normal(size=dim))
        self.cov = torch.from_numpy(half @ half.T + 0.2 * np.eye(dim))
        self.data = MultivariateNormal(self.m, self.cov)
        self.variances, self.axes = torch.linalg.eigh(self.cov)

    def __call__(self, x, t):
        t, m, axes, v = (part.to(x.dtype) for part in (t.reshape(-1, 1), self.m, self.axes, self.variances))
        gain = (t * v - (1 - t)) / (t**2 * v + (1 - t) ** 2)
        return m + (gain * ((x - t * m) @ axes)) @ axes.T


def points(batch, dim, dtype=torch.float64):
    return pfc.randn(range(batch), (dim,), dtype=dtype)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2), (), (4, 1)])
@pytest.mark.parametrize(
    "solver, options, steps, error",
    [("rk4", {}, 20, 3e-7), ("dopri8", {}, 8, 2e-12), ("ab4", {"start": "single"}, 200, 3e-7)],
)
def test_growth(shape, solver, options, steps, error):
    x1 = pfc.randn(range(5), shape, dtype=torch.float64)
    found = pfc.log_prob(growth, x1, plan=back(solver, steps, **options))
    assert found.value.shape == found.stderr.shape == found.nfe.shape == (5,)
    assert (found.value - grown(x1.reshape(5, -1))).abs().max() < error
    assert not found.stderr.any()
    assert found.nfe.tolist() == [back(solver, steps, **options).nfe] * 5


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("rk4", 4), ("ab2", 2)])
def test_order_is_the_solvers(solver, order):
    """The quadrature of the divergence is of the solver's order, on a field whose divergence depends on x."""
    exact = Mixture([[-1.0, 0.5], [1.0, 0.0]], 0.6)
    x1 = points(6, 2)
    errors = []
    for steps in (12, 24):
        value = pfc.log_prob(exact.of("velocity"), x1, plan=back(solver, steps)).value
        errors.append((value - mixture_density(exact).log_prob(x1)).abs().max().item())
    assert errors[0] < 1.5
    assert math.log2(errors[0] / errors[1]) >= order - 0.3, errors


def mixture_density(mixture):
    parts = Independent(Normal(mixture.mu, torch.tensor(mixture.s, dtype=torch.float64)), 1)
    return MixtureSameFamily(Categorical(mixture.w), parts)


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_gaussian_with_full_covariance(dim):
    data = Gaussian(dim)
    x1 = points(7, dim)
    found = pfc.log_prob(data, x1, plan=back("dopri8", 10))
    assert (found.value - data.data.log_prob(x1)).abs().max() < 1e-7


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "v"])
def test_mixture_by_every_prediction(path, prediction):
    """Predictions other than the velocity are converted by the plan's rows, and their divergence with them."""
    mixture = Mixture([[-1.5, 0.3, 0.0], [1.0, 0.5, -0.5]], 0.7, [0.3, 0.7], path)
    field = pfc.Field(mixture.of(prediction), prediction=prediction, path=path)
    # The state inside (0, 1), where each of them determines the velocity.
    grid = np.linspace(0.98, 0.02, 17)
    plan = pfc.plan("dopri5", grid=grid, path=path, prediction=prediction, last="full")

    def density(t, x):
        alpha, sigma, _, _ = (float(v) for v in pfc.paths.get(path).coefficients(t))
        deviation = torch.tensor(math.hypot(alpha * mixture.s, sigma), dtype=torch.float64)
        parts = Independent(Normal(alpha * mixture.mu, deviation), 1)
        return MixtureSameFamily(Categorical(mixture.w), parts)

    x = points(5, 3)
    found = pfc.log_prob(field, x, plan=plan, source=density(0.02, x))
    assert (found.value - density(0.98, x).log_prob(x)).abs().max() < 2e-4


def test_there_and_back():
    field = Gaussian(3)
    there = pfc.sample_with_log_prob(
        field, plan=pfc.plan("dopri8", 10, last="full"), shape=(3,), seeds=range(6), dtype=torch.float64
    )
    again = pfc.log_prob(field, there.x, plan=back("dopri8", 10))
    assert (there.value - again.value).abs().max() < 1e-7
    assert (there.value - field.data.log_prob(there.x)).abs().max() < 1e-7
    assert torch.equal(
        there.x,
        pfc.Sampler(pfc.plan("dopri8", 10, last="full"))(
            field, shape=(3,), seeds=range(6), dtype=torch.float64
        ),
    )


if __name__ == "__main__":
    pytest.main([__file__])
