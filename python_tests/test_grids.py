"""Time grids, and the conversion between predictions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyflowcore as pfc
from pyflowcore import _core
from reference import paths as reference
from reference.fields import PREDICTIONS

FIXED = settings(derandomize=True, max_examples=60, deadline=None)


@given(st.integers(1, 500), st.floats(0.05, 20.0))
@FIXED
def test_shifted_is_its_formula(steps, shift):
    times = np.array(pfc.grids.shifted(shift).times(steps))
    s = 1 - np.arange(steps + 1) / steps
    np.testing.assert_allclose(1 - times, shift * s / (1 + (shift - 1) * s), atol=1e-14)
    assert times[0] == 0.0
    assert times[-1] == 1.0
    assert np.all(np.diff(times) > 0)


@given(st.integers(1, 2000))
@FIXED
def test_uniform_is_exact(steps):
    assert pfc.grids.uniform().times(steps) == [i / steps for i in range(steps + 1)]


def test_given_times_are_kept_to_the_bit():
    values = np.sort(np.random.default_rng(0).uniform(size=9))
    assert pfc.plan("euler", grid=values).times == tuple(values)
    assert pfc.plan("euler", grid=pfc.grids.times(values)).steps == 8
    assert pfc.plan("euler", 8, grid=list(values)).steps == 8


def test_shift_of_one_is_uniform():
    assert pfc.grids.shifted(1).times(7) == pfc.grids.uniform().times(7)


def mixture(prediction, t, path):
    """A prediction as (coefficient of x1, coefficient of x0)."""
    alpha, sigma, dalpha, dsigma = (float(c) for c in reference.coefficients(path, t))
    return {
        "velocity": (dalpha, dsigma), "data": (1.0, 0.0), "noise": (0.0, 1.0), "score": (0.0, -1.0 / sigma),
        "v": (-sigma, alpha),
    }[prediction]  # fmt: skip


@pytest.mark.parametrize("path", reference.NAMES)
@given(
    t=st.floats(0.02, 0.98), x1=st.floats(-3, 3), x0=st.floats(-3, 3), source=st.sampled_from(PREDICTIONS),
    target=st.sampled_from(PREDICTIONS),
)  # fmt: skip
@FIXED
def test_every_conversion(path, t, x1, x0, source, target):
    kinds = _core.Prediction.__members__
    p, q = _core.convert(pfc.paths.get(path)._core, kinds[source], kinds[target], t)
    alpha, sigma, _, _ = reference.coefficients(path, t)
    a, b = mixture(source, t, path)
    c, d = mixture(target, t, path)
    x, given_value, wanted = alpha * x1 + sigma * x0, a * x1 + b * x0, c * x1 + d * x0
    size = abs(p) * 5 + abs(q) * (abs(a) + abs(b)) * 3 + 1
    assert p * x + q * given_value == pytest.approx(wanted, abs=1e-13 * size, rel=1e-12)
