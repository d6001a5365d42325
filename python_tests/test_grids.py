"""Time grids, and the conversion between predictions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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


EVERY = {
    "uniform": pfc.grids.uniform(), "shifted": pfc.grids.shifted(3.0), "dynamic": pfc.grids.dynamic_shift(1024),
    "dynamic linear": pfc.grids.dynamic_shift(4096, "linear"), "karras": pfc.grids.karras(),
    "exponential": pfc.grids.exponential(), "beta": pfc.grids.beta(), "beta 2 5": pfc.grids.beta(2.0, 5.0),
    "logit normal": pfc.grids.logit_normal(), "logit normal 2": pfc.grids.logit_normal(-0.7, 1.6),
    "linear quadratic": pfc.grids.linear_quadratic(), "cosine": pfc.grids.cosine(),
    "lambda": pfc.grids.lambda_uniform(-5, 4), "composed": pfc.grids.beta().shifted(3.0).dynamic_shift(500),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_ends_and_order(name):
    """n + 1 strictly increasing times, 0 and 1 exactly at the ends, for every number of steps."""
    for steps in (1, 2, 3, 7, 50, 501):
        times = EVERY[name].times(steps)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (0.0, 1.0)
        assert np.all(np.diff(times) > 0)
        assert pfc.plan("euler", steps, grid=EVERY[name]).times == tuple(times)


def karras_levels(steps, rho, least, most):
    ramp = np.linspace(0, 1, steps)
    return (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho


@pytest.mark.parametrize("steps", [2, 3, 10, 40])
def test_karras_and_exponential_in_the_flows_levels(steps):
    times = np.array(pfc.grids.karras(5.0, 0.01, 0.8).times(steps))
    np.testing.assert_allclose(1 - times[:-1], karras_levels(steps, 5.0, 0.01, 0.8), rtol=1e-13)
    times = np.array(pfc.grids.exponential(0.01, 0.8).times(steps))
    np.testing.assert_allclose(1 - times[:-1], np.geomspace(0.8, 0.01, steps), rtol=1e-13)
    assert times[-1] == 1.0


@pytest.mark.parametrize("path", reference.EVERY)
def test_karras_in_the_ratios_of_a_path(path):
    """EDM's levels are sigma / alpha of the plan's path; from t = 0 where the path reaches no higher."""
    plan = pfc.plan("edm_heun", 10, grid=pfc.grids.karras(sigma_max=60.0, levels="rho"), path=path)
    alpha, sigma, _, _ = reference.coefficients(path, np.array(plan.times))
    np.testing.assert_allclose((sigma / alpha)[:-1], karras_levels(10, 7.0, 0.002, 60.0), rtol=2e-9)
    assert plan.times[-1] == 1.0
    whole = pfc.plan(
        "ddim", 10, grid=pfc.grids.karras(sigma_max=80.0, levels="rho"), path="ve", prediction="data"
    )
    assert whole.times[0] == 0.0


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (2.0, 5.0), (1.0, 1.0), (0.3, 1.7), (30.0, 20.0)])
def test_beta_quantiles(a, b):
    for steps in (2, 7, 100):
        times = pfc.grids.beta(a, b).times(steps)
        np.testing.assert_allclose(
            times, stats.beta.ppf(np.arange(steps + 1) / steps, a, b), rtol=1e-10, atol=1e-14
        )
    if a == b == 1.0:
        np.testing.assert_allclose(times, np.arange(101) / 100, atol=1e-14)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 1.6)])
def test_logit_normal_quantiles(mean, std):
    z = stats.norm.ppf(np.arange(41) / 40)
    np.testing.assert_allclose(
        pfc.grids.logit_normal(mean, std).times(40), 1 / (1 + np.exp(-(mean + std * z))), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("steps", "linear"), [(2, None), (8, None), (9, None), (64, None), (20, 5), (20, 19)]
)
def test_linear_quadratic_is_mochis(steps, linear):
    """The polynomial as its source writes it."""
    threshold, m = 0.025, linear or steps // 2
    difference, rest = m - threshold * steps, steps - m
    bend = difference / (m * rest**2)
    slope, constant = threshold / m - 2 * difference / rest**2, bend * m**2
    wanted = (
        [threshold * i / m for i in range(m)]
        + [bend * i**2 + slope * i + constant for i in range(m, steps)]
        + [1.0]
    )
    np.testing.assert_allclose(pfc.grids.linear_quadratic(threshold, linear).times(steps), wanted, atol=1e-13)


def test_known_values():
    np.testing.assert_allclose(pfc.grids.cosine().times(3), [0, 1 - np.cos(np.pi / 6), 0.5, 1], atol=1e-15)
    # e^mu is e^0.5 at 256 tokens and e^1.15 at 4096; half way in t is 1 / (1 + e^mu).
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        assert pfc.grids.dynamic_shift(tokens).times(2)[1] == pytest.approx(1 / (1 + np.exp(mu)), rel=1e-14)
        assert pfc.grids.dynamic_shift(tokens, "linear").times(2)[1] == pytest.approx(1 / (1 + mu), rel=1e-14)


@pytest.mark.parametrize("path", reference.EVERY)
def test_uniform_in_lambda(path):
    lo, hi = -2.5, 3.0
    inside = pfc.plan("dpmpp_2m", 12, grid=pfc.grids.lambda_uniform(lo, hi, whole=False), path=path)
    np.testing.assert_allclose(
        reference.log_snr(path, np.array(inside.times)), np.linspace(lo, hi, 13), atol=1e-10
    )
    whole = pfc.plan(
        "dpmpp_2m", 12, grid=pfc.grids.lambda_uniform(lo, hi), path=path, prediction="data"
    ).times
    assert (whole[0], whole[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(
        reference.log_snr(path, np.array(whole[1:-1])), np.linspace(lo, hi, 11), atol=1e-10
    )


def test_terminal():
    """The last level above 0 is the one asked for; levels above it are stretched in proportion to t."""
    base = np.array(pfc.grids.shifted(3.0).times(8))
    times = np.array(pfc.grids.shifted(3.0).terminal(0.1).times(8))
    np.testing.assert_allclose(1 - times[:-1], 1 - base[:-1] * 0.9 / base[-2], atol=1e-15)
    assert (times[-2], times[-1]) == (0.9, 1.0)


def test_modifiers_apply_in_the_order_in_which_they_stand():
    base = pfc.grids.beta()
    shift = lambda t, s: t / (t + s * (1 - t))  # noqa: E731
    times = np.array(base.times(10))
    np.testing.assert_allclose(base.shifted(2.0).shifted(1.5).times(10), shift(times, 3.0), atol=1e-15)
    first, second = base.shifted(3.0).terminal(0.1).times(10), base.terminal(0.1).shifted(3.0).times(10)
    assert first[-2] == 0.9
    assert second[-2] == pytest.approx(shift(0.9, 3.0), rel=1e-15)
    assert repr(base.shifted(2.0)) == "Shifted(shift=2.0, base=Beta(a=0.6, b=0.6))"
    given = pfc.grids.times([0.0, 0.3, 1.0]).shifted(2.0)
    assert pfc.plan("euler", grid=given).times == tuple(given.times(2))
    on_path = pfc.grids.lambda_uniform(-2, 2).shifted(2.0)
    wanted = [shift(t, 2.0) for t in pfc.plan("euler", 5, path="trigonometric", grid=on_path.base).times]
    np.testing.assert_allclose(
        pfc.plan("euler", 5, path="trigonometric", grid=on_path).times, wanted, atol=1e-15
    )


def test_sigmas_of_another_library():
    levels = [1.0, 0.9, 0.55, 0.2, 0.0]
    assert pfc.plan("euler", grid=pfc.grids.sigmas(levels)).times == tuple(1.0 - np.array(levels))
    partial = pfc.plan("heun", grid=pfc.grids.sigmas(np.float32([0.6, 0.25, 0.0])))
    assert partial.times == (1.0 - float(np.float32(0.6)), 0.75, 1.0)
    assert pfc.plan("euler", 4, grid=pfc.grids.sigmas(levels)).steps == 4


G = pfc.grids
REFUSED = {
    "shift": (lambda: G.beta().shifted(0.0), ["shift", "0.0"]),
    "tokens": (lambda: G.dynamic_shift(0), ["tokens", "0"]),
    "tokens float": (lambda: G.dynamic_shift(10.0), ["tokens", "float"]),
    "form": (lambda: G.dynamic_shift(10, "cubic"), ["form", "'cubic'", "exponential"]),
    "linear shift below 0": (lambda: G.dynamic_shift(1, "linear").terminal(2.0), ["terminal", "2.0"]),
    "terminal of one step": (lambda: G.uniform().terminal(0.1).times(1), ["terminal", "2 steps", "1"]),
    "terminal of a partial grid": (lambda: G.times([0.0, 0.3, 0.9]).terminal(0.1).times(2), ["terminal", "t = 1", "0.9"]),
    "karras levels": (lambda: G.karras(levels="t"), ["levels", "'sigma'", "'rho'", "'t'"]),
    "karras above 1": (lambda: G.karras(sigma_max=80.0).times(5), ["sigma_max", "80", "1.0"]),
    "karras falls": (lambda: G.karras(sigma_min=0.5, sigma_max=0.5).times(5), ["sigma_max", "0.5"]),
    "karras rho": (lambda: G.karras(rho=0).times(5), ["rho", "0"]),
    "exponential": (lambda: G.exponential(sigma_min=0.0).times(5), ["sigma_min", "0"]),
    "karras below the path": (
        lambda: pfc.plan("ddim", 5, path=pfc.paths.VE(0.001), grid=G.karras(levels="rho"), prediction="data"),
        ["sigma_min", "0.002", "0.001"],
    ),
    "beta": (lambda: G.beta(0.0).times(5), ["a must", "0"]),
    "beta text": (lambda: G.beta("0.6"), ["a must", "str"]),
    "logit normal": (lambda: G.logit_normal(0.0, -1.0).times(5), ["std", "-1"]),
    "threshold": (lambda: G.linear_quadratic(1.0).times(5), ["threshold", "1.0"]),
    "linear steps": (lambda: G.linear_quadratic(0.025, 5).times(5), ["linear_steps", "5", "4"]),
    "linear steps zero": (lambda: G.linear_quadratic(0.025, 0), ["linear_steps", "0"]),
    "lambda": (lambda: G.lambda_uniform(1, 1).times(5), ["lo", "hi", "1.0"]),
    "lambda infinite": (lambda: G.lambda_uniform(-np.inf, 1).times(5), ["lo", "inf"]),
    "lambda below the path": (lambda: pfc.plan("ddim", 5, path="vp", grid=G.lambda_uniform(-9, 1)), ["lo", "-9", "-5"]),
    "sigmas rise": (lambda: G.sigmas([0.0, 0.5, 1.0]), ["sigmas", "fall", "0.5"]),
    "sigmas above 1": (lambda: G.sigmas([14.6, 0.5, 0.0]), ["sigmas", "14.6"]),
    "one sigma": (lambda: G.sigmas([1.0]), ["sigmas", "two", "1"]),
    "steps": (lambda: G.cosine().times(0), ["steps", "0"]),
    "nfe of a fixed grid": (lambda: pfc.plan("heun", nfe=8, grid=G.times([0, 0.5, 1]).shifted(2.0)), ["nfe"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_resolution_shift():
    """sqrt(m / n) of the noise level (Esser et al. 2024, equation 23), alone and composed."""
    times = np.linspace(0.0, 1.0, 9)
    shift = np.sqrt(64 * 64 / (32 * 32))
    wanted = 1 - shift * (1 - times) / (1 + (shift - 1) * (1 - times))
    np.testing.assert_allclose(pfc.grids.resolution_shift(64 * 64, 32 * 32).times(8), wanted, rtol=1e-14)
    assert pfc.grids.beta().resolution_shift(4.0, 1.0).terminal(0.1) == pfc.grids.beta().shifted(
        2.0
    ).terminal(0.1)
    assert pfc.grids.resolution_shift(7, 7).times(8) == pfc.grids.uniform().times(8)
    for arguments, word in (((0, 1), "size"), ((1, -2.0), "trained"), ((float("inf"), 1), "size")):
        with pytest.raises(ValueError, match=word):
            pfc.grids.resolution_shift(*arguments)
    with pytest.raises(TypeError, match="trained must be a number"):
        pfc.grids.resolution_shift(1, "32")
