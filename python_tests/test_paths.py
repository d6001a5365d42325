"""Path coefficients against a derivation of their own, against 40-digit arithmetic, and at the ends."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

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
    }[name]
    with mpmath.workdps(60):
        u = mpmath.mpf(float(t))
        return [float(f(u)) for f in functions] + [float(mpmath.diff(f, u)) for f in functions]


@pytest.mark.parametrize("name", reference.NAMES)
def test_against_numpy(name):
    for ours, theirs in zip(
        pfc.paths.get(name).coefficients(TIMES), reference.coefficients(name, TIMES), strict=True
    ):
        assert ours.dtype == np.float64
        assert ours.shape == TIMES.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-14, atol=1e-15)


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.1, 0.4999, 0.5, 0.77, 0.999, 1 - 1e-7])
def test_against_sixty_digits(name, t):
    ours = [float(c) for c in pfc.paths.get(name).coefficients(t)]
    # Near t = 1 the VP path's sigma is sqrt(1 - alpha^2) of s = 1 - t; its relative error stays at rounding, because the
    # difference is taken by expm1.
    np.testing.assert_allclose(ours, precise(name, t), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", ["linear", "trigonometric"])
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


@pytest.mark.parametrize("name", ["trigonometric", "vp"])
def test_variance_is_preserved(name):
    alpha, sigma, _, _ = pfc.paths.get(name).coefficients(TIMES)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-15)


def test_get_and_description():
    for name in reference.NAMES:
        path = pfc.paths.get(name)
        assert path.name == name
        assert pfc.paths.get(path.to_dict()) == path
        assert pfc.paths.get(path) is path
    assert pfc.paths.get({"name": "vp", "beta_min": 0.2, "beta_max": 10.0}) == pfc.paths.VP(0.2, 10.0)
    assert pfc.paths.VP() != pfc.paths.VP(0.2)


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, np.nan, [0.5, 2.0]])
def test_times_outside_are_refused(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        pfc.paths.Linear().coefficients(t)
