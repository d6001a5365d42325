"""Path coefficients against a derivation of their own, against 40-digit arithmetic, and at the ends."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import paths as reference

TIMES = np.concatenate([np.linspace(0.0, 1.0, 201)[:-1], [1e-9, 1e-4, 1 - 1e-4, 1 - 1e-9]])


def precise(name, t):
    """alpha and sigma as mpmath functions; the derivatives are differences in 60 digits."""
    half_pi = mpmath.pi / 2

    def log_alpha(u):
        s = 1 - u
        return -(s**2) * (mpmath.mpf(20) - mpmath.mpf("0.1")) / 4 - s * mpmath.mpf("0.1") / 2

    functions = {
        "linear": (lambda u: u, lambda u: 1 - u),
        "trigonometric": (lambda u: mpmath.sin(half_pi * u), lambda u: mpmath.cos(half_pi * u)),
        "vp": (lambda u: mpmath.exp(log_alpha(u)), lambda u: mpmath.sqrt(1 - mpmath.exp(2 * log_alpha(u)))),
        "polynomial": (lambda u: u**2, lambda u: 1 - u**2),
        "linear_vp": (lambda u: u, lambda u: mpmath.sqrt(1 - u**2)),
        "ve": (lambda u: mpmath.mpf(1) + 0 * u, lambda u: 80 * (1 - u)),
    }[name]
    with mpmath.workdps(60):
        u = mpmath.mpf(float(t))
        return [float(f(u)) for f in functions] + [float(mpmath.diff(f, u)) for f in functions]


@pytest.mark.parametrize("name", reference.EVERY)
def test_against_numpy(name):
    for ours, theirs in zip(
        pfc.paths.get(name).coefficients(TIMES), reference.coefficients(name, TIMES), strict=True
    ):
        assert ours.dtype == np.float64
        assert ours.shape == TIMES.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-14, atol=1e-15)


@pytest.mark.parametrize("name", reference.EVERY)
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.1, 0.4999, 0.5, 0.77, 0.999, 1 - 1e-7])
def test_against_sixty_digits(name, t):
    ours = [float(c) for c in pfc.paths.get(name).coefficients(t)]
    # Near t = 1 the VP path's sigma is sqrt(1 - alpha^2) of s = 1 - t; its relative error stays at rounding, because the
    # difference is taken by expm1.
    np.testing.assert_allclose(ours, precise(name, t), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", ["linear", "trigonometric", "polynomial", "linear_vp"])
def test_ends_are_exact(name):
    path = pfc.paths.get(name)
    assert [float(c) for c in path.coefficients(0.0)][:2] == [0.0, 1.0]
    assert [float(c) for c in path.coefficients(1.0)][:2] == [1.0, 0.0]


def test_vp_ends():
    alpha, sigma, _, dsigma = (float(c) for c in pfc.paths.VP().coefficients(1.0))
    assert (alpha, sigma, dsigma) == (1.0, 0.0, -np.inf)
    assert float(pfc.paths.VP().coefficients(0.0)[0]) == pytest.approx(np.exp(-0.25 * 19.9 - 0.05), rel=1e-14)
    other = pfc.paths.VP(beta_min=0.5, beta_max=12.0)
    for ours, theirs in zip(other.coefficients(TIMES), reference.vp(TIMES, 0.5, 12.0), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-14, atol=1e-15)


@pytest.mark.parametrize("name", ["trigonometric", "vp", "linear_vp"])
def test_variance_is_preserved(name):
    alpha, sigma, _, _ = pfc.paths.get(name).coefficients(TIMES)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-15)


def test_polynomial_paths():
    """t^n and 1 - t^n for every n; sigma keeps its relative accuracy near t = 1, where 1 - t^n cancels."""
    for n in (1, 2, 3, 7, 64):
        path = pfc.paths.Polynomial(n)
        for t in (0.0, 1e-3, 0.3, 0.9, 1 - 1e-12, 1.0):
            with mpmath.workdps(60):
                u = mpmath.mpf(t)
                slope = n * u ** (n - 1)
                exact = [float(v) for v in (u**n, 1 - u**n, slope, -slope)]
            np.testing.assert_allclose(
                [float(c) for c in path.coefficients(t)], exact, rtol=1e-13, atol=1e-300
            )
    for ours, linear in zip(
        pfc.paths.Polynomial(1).coefficients(TIMES), pfc.paths.Linear().coefficients(TIMES), strict=True
    ):
        np.testing.assert_array_equal(ours, linear)


def test_ends_of_the_other_paths():
    assert [float(c) for c in pfc.paths.LinearVP().coefficients(1.0)] == [1.0, 0.0, 1.0, -np.inf]
    assert [float(c) for c in pfc.paths.VE(50.0).coefficients(0.0)] == [1.0, 50.0, 0.0, -50.0]
    assert [float(c) for c in pfc.paths.VE(50.0).coefficients(1.0)] == [1.0, 0.0, 0.0, -50.0]
    assert [float(c) for c in pfc.paths.Polynomial(3).coefficients(0.0)] == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", reference.EVERY)
def test_derivatives_are_those_of_the_values(name):
    """Against central differences of the values themselves."""
    path, t, h = pfc.paths.get(name), np.linspace(0.05, 0.95, 19), 1e-5
    below, above, here = path.coefficients(t - h), path.coefficients(t + h), path.coefficients(t)
    for value in (0, 1):
        difference = (above[value] - below[value]) / (2 * h)
        np.testing.assert_allclose(here[value + 2], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", reference.EVERY)
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score", "v"])
def test_interpolate_on_every_path(name, prediction):
    """x_t and the target of training, against their definitions, in float64."""
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    data, noise = (
        pfc.randn(range(7), (5,), dtype=torch.float64),
        pfc.randn(range(9, 16), (5,), dtype=torch.float64),
    )
    found = pfc.interpolate(data, t, x0=noise, path=name, prediction=prediction)
    alpha, sigma, dalpha, dsigma = (
        torch.from_numpy(c)[:, None] for c in reference.coefficients(name, t.numpy())
    )
    wanted = {
        "velocity": dalpha * data + dsigma * noise, "data": data, "noise": noise, "score": -noise / sigma,
        "v": alpha * noise - sigma * data,
    }  # fmt: skip
    torch.testing.assert_close(found.x_t, alpha * data + sigma * noise, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.target, wanted[prediction], rtol=1e-12, atol=1e-12)


def test_a_ve_trajectory_begins_with_its_noise():
    """shape= starts at sigma_max times the unit noise; a given x0 is the state itself."""
    plan = pfc.plan("ddim", 3, path=pfc.paths.VE(20.0), prediction="data")
    field = pfc.Field(lambda x, t: 0 * x, "data", pfc.paths.VE(20.0))
    found = pfc.Sampler(plan)(field, shape=(5,), seeds=range(4), return_trajectory=True)
    assert torch.equal(found.states[0], 20.0 * pfc.randn(range(4), (5,)))
    given = pfc.Sampler(plan)(field, x0=torch.ones(2, 5), return_trajectory=True)
    assert torch.equal(given.states[0], torch.ones(2, 5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pfc.paths.Polynomial(0), ["n", "1 to 64", "0"]),
        (lambda: pfc.paths.Polynomial(2.5), ["n", "integer", "float"]),
        (lambda: pfc.paths.VE(0.0), ["sigma_max", "0.0"]),
        (lambda: pfc.paths.VE(float("inf")), ["sigma_max", "inf"]),
        (lambda: pfc.paths.get({"name": "ve", "sigma": 1.0}), ["'ve'", "sigma"]),
        (lambda: pfc.paths.get("edm"), ["'edm'", "linear", "polynomial", "linear_vp", "ve"]),
        (lambda: torch.ops.pyflowcore.interpolate(
            torch.ones(1, 1), torch.ones(1), torch.ones(1, 1), None, 6, 0.0, 0.0, 0, 0, 0), ["path is 6"]),
    ],
)  # fmt: skip
def test_refused(call, words):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_get_and_description():
    for name in reference.EVERY:
        path = pfc.paths.get(name)
        assert path.name == name
        assert pfc.paths.get(path.to_dict()) == path
        assert pfc.paths.get(path) is path
    assert pfc.paths.get({"name": "vp", "beta_min": 0.2, "beta_max": 10.0}) == pfc.paths.VP(0.2, 10.0)
    assert pfc.paths.VP() != pfc.paths.VP(0.2)
    assert pfc.paths.get({"name": "polynomial", "n": 3}) == pfc.paths.Polynomial(3)
    assert pfc.paths.get({"name": "ve", "sigma_max": 20.0}) == pfc.paths.VE(20.0)
    for path in (pfc.paths.Polynomial(3), pfc.paths.VE(20.0), pfc.paths.LinearVP()):
        plan = pfc.plan("unipc", 4, path=path, prediction="data")
        assert pfc.Plan.from_json(plan.to_json()) == plan
        assert plan.path == path


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, np.nan, [0.5, 2.0]])
def test_times_outside_are_refused(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        pfc.paths.Linear().coefficients(t)
