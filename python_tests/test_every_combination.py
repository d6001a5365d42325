"""Every solver, path and prediction over grids that touch t = 0 and t = 1, in both directions: it is known here, from what
each needs at the ends, which of them can be built. Those build and give finite numbers on Gaussian data; the others are
refused, by a message that names the solver, the path, the prediction and the time."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import pyflowcore as pfc
from reference import catalogue, executor, fields
from reference import paths as reference

GRIDS = {
    "whole": [0.0, 1.0], "from 0": [0.0, 0.2, 0.5, 0.8], "to 1": [0.2, 0.5, 0.8, 1.0],
    "whole, fine": [0.0, 0.1, 0.3, 0.35, 0.7, 1.0],
}  # fmt: skip
GRIDS |= {f"{name}, backwards": times[::-1] for name, times in GRIDS.items()}
NOISE = np.random.default_rng(0).normal(size=(20, 3))

# alpha = 0 at t = 0; sigma' = -inf at t = 1, where sigma = 0 on all of them.
FROM_NOISE = ("linear", "trigonometric", "polynomial", "linear_vp")
STEEP = ("vp", "linear_vp")
# Tableaus with a stage at the end of the step.
REACHING = ("heun", "rk3", "ssprk3", "rk4", "rk38", "dopri5", "tsit5", "dopri8")
IN_T = (*REACHING, "euler", "midpoint", "ralston2", "heun3", "bosh3", "ab1", "ab2", "ab3", "ab4")
DIFFUSE = ("euler_maruyama", "stochastic_heun")


def known(path, prediction, t):
    """What a field's prediction, together with the point, determines at t: worked out by hand for the two ends."""
    everything = {"velocity", "data", "noise", "score", "v"}
    if t == 0.0 and path in FROM_NOISE:
        if prediction in ("noise", "score"):
            return {"noise", "score"}  # x is the noise there, and nothing says the data
        if prediction == "velocity" and path == "polynomial":
            return {"velocity"}  # it vanishes
    if t == 1.0:
        if prediction in ("data", "score"):
            return {prediction}  # x is the data, and nothing says the noise; the score's is infinite
        if path in STEEP:
            return {"velocity"} if prediction == "velocity" else {"data", "noise", "v"}
        return everything - {"score"}
    return everything


def needs(solver, options, path, prediction, times, last):
    """(what, t) for every end of the grid where the solver evaluates, as an option list: any one of `what` serves."""
    first, end = times[0], times[-1]
    backwards = first > end
    single = options.get("start") == "single" and options.get("order", 2) + (solver == "unipc") > 1
    # A single-step start is in t; a grid of one step has none where it ends on an infinite lambda.
    starts_in_t = single and (len(times) > 2 or not (end == 1.0 or (end == 0.0 and path in FROM_NOISE)))
    if first == 0.0 and path in FROM_NOISE:
        yield (("velocity",) if solver in (*IN_T, *DIFFUSE) or starts_in_t else ("data",)), 0.0
        if solver in DIFFUSE and options["diffusion"] != "sine":  # whose w is 0 at both ends
            yield ("score",), 0.0
    if first == 1.0:
        if solver in IN_T:
            yield ("velocity",), 1.0
        else:
            # The noise; or Euler's step, or a start's Runge-Kutta step, in the field's own velocity.
            yield (("noise", "velocity") if prediction == "velocity" or starts_in_t else ("noise",)), 1.0
    if end == 1.0 and last == "full":
        if solver in REACHING or solver == "stochastic_heun":
            yield ("velocity",), 1.0
        if solver == "stochastic_heun" and options.get("diffusion") == "constant":
            yield ("score",), 1.0
        # A step of infinite length is of first order there, last="full" or not.
        if solver == "edm_heun" and not (first == 0.0 and path in FROM_NOISE and len(times) == 2):
            yield ("noise",), 1.0
    if backwards and end == 0.0 and solver in REACHING:
        yield ("velocity",), 0.0


def refused(solver, options, path, prediction, times, last):
    """Why the combination cannot be built, in a word; or None."""
    if times[0] > times[-1] and (solver, options) in NOISY:
        return "draws noise"
    if times[0] == 0.0 and path in FROM_NOISE and options.get("diffusion") == "sigma/alpha":
        return "diffusion"
    for what, t in needs(solver, options, path, prediction, times, last):
        if not known(path, prediction, t) & set(what):
            return "undetermined"
    return None


NOISY = list(catalogue.STOCHASTIC.values())
# What differs from another case at no end is left out.
CASES = [case for name, case in catalogue.EVERY.items() if not re.search(r"bh1|-0\.\d|cosine", name)]


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("prediction", fields.PREDICTIONS)
def test_builds_or_is_refused(path, prediction):
    field = fields.gaussian_everywhere(path, prediction)
    built = 0
    for (solver, options), times, last in itertools.product(CASES, GRIDS.values(), ("default", "full")):
        if last == "full" and (times[-1] != 1.0 or solver not in (*REACHING, "stochastic_heun", "edm_heun")):
            continue  # it says nothing there
        case = solver, options, path, prediction, times, last
        why = refused(*case)
        try:
            plan = pfc.plan(solver, grid=times, path=path, prediction=prediction, last=last, **options)
        except ValueError as error:
            text = str(error)
            assert why is not None, (case, text)
            assert f"'{solver}'" in text, text
            if why == "draws noise":
                assert "draws noise" in text, text
                continue
            assert re.search(r"at t = [01] on the (\w+) path", text)[1] == path, text
            assert "w is inf" in text if why == "diffusion" else prediction in text, text
            continue
        assert why is None, (case, why)
        alpha, sigma, _, _ = reference.coefficients(path, times[0])
        start = alpha * 0.8 + np.sqrt(alpha**2 * 0.25 + sigma**2) * np.array([-1.0, 0.3, 1.5])
        states = executor.run(plan.to_dict(), field, start, NOISE.__getitem__)
        assert len(states) == len(times) - 1
        assert np.isfinite(states).all(), case
        built += 1
    assert built > 30
