"""Fields trained as diffusion models sample as flows: EDM's preconditioned networks and scaled inputs, against the loops of
their papers written out in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, executor, fields, paths
from reference.torch_fields import as_net

SD = 0.5


def raw_network(x, c_noise):
    """Any network F, of the scaled input and c_noise."""
    return np.tanh(1.3 * x - 0.2) + 0.3 * np.sin(x + 2.0 * c_noise)


def denoiser(x, sigma):
    """Karras et al. 2022, equation 7, with table 1's column "Ours"."""
    c_skip = SD**2 / (sigma**2 + SD**2)
    c_out = sigma * SD / np.sqrt(sigma**2 + SD**2)
    c_in = 1 / np.sqrt(sigma**2 + SD**2)
    return c_skip * x + c_out * raw_network(c_in * x, np.log(sigma) / 4)


def karras_levels(steps, least=0.002, most=80.0, rho=7):
    """Equation 5, with the 0 at the end."""
    i = np.arange(steps) / (steps - 1)
    return np.append((most ** (1 / rho) + i * (least ** (1 / rho) - most ** (1 / rho))) ** rho, 0.0)


def algorithm_1(x, levels):
    for now, then in itertools.pairwise(levels):
        slope = (x - denoiser(x, now)) / now
        moved = x + (then - now) * slope
        if then != 0:
            moved = x + (then - now) * (slope + (moved - denoiser(moved, then)) / then) / 2
        x = moved
    return x


def algorithm_2(x, levels, draw, s_churn, s_min, s_max, s_noise):
    steps = len(levels) - 1
    for i in range(steps):
        now, then = levels[i], levels[i + 1]
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= now <= s_max else 0.0
        raised = now * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - now**2) * s_noise * draw(i)
        slope = (x - denoiser(x, raised)) / raised
        moved = x + (then - raised) * slope
        if then != 0:
            moved = x + (then - raised) * (slope + (moved - denoiser(moved, then)) / then) / 2
        x = moved
    return x


def edm_field(path="ve", seen=None, **options):
    def net(x, c_noise):
        if seen is not None:
            seen.append((x.clone(), c_noise.clone()))
        return torch.from_numpy(raw_network(x.double().numpy(), float(c_noise[0]))).to(x.dtype)

    return pfc.Field(net, pfc.EDM(SD), path, **options)


def edm_plan(steps=12, solver="edm_heun", **options):
    grid = pfc.grids.karras(levels="rho", sigma_min=0.002, sigma_max=80.0)
    return pfc.plan(solver, steps, path="ve", prediction=pfc.EDM(SD), grid=grid, **options)


X0 = 80.0 * torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(2, 6)


def test_algorithm_1():
    """The published deterministic sampler on the published preconditioning, to 1e-12; its input is c_in x, its time c_noise."""
    seen = []
    found = pfc.Sampler(edm_plan())(edm_field(seen=seen), x0=X0)
    np.testing.assert_allclose(
        found.numpy(), algorithm_1(X0.numpy(), karras_levels(12)), rtol=1e-12, atol=1e-12
    )
    levels = karras_levels(12)
    torch.testing.assert_close(seen[0][0], X0 / math.sqrt(80.0**2 + SD**2), rtol=1e-15, atol=1e-15)
    told = [float(c[0]) for _, c in seen]
    evaluated = [levels[0], *np.repeat(levels[1:12], 2)]
    np.testing.assert_allclose(told, np.log(evaluated) / 4, rtol=1e-11)
    assert len(told) == 23


def test_algorithm_2():
    """With churn, on the plan's own noise."""
    churn = {"s_churn": 4.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
    draw = executor.plan_noise([5, 9], (6,))
    found = pfc.Sampler(edm_plan(**churn))(edm_field(), x0=X0, seeds=[5, 9])
    # Times of raised levels are found by bisection in t, whose spacing near 1 is a part in 1e12 of the least level.
    np.testing.assert_allclose(
        found.numpy(), algorithm_2(X0.numpy(), karras_levels(12), draw, **churn), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("solver", catalogue.EVERY)
def test_the_denoiser_and_its_network_give_one_solve(solver):
    """Every solver: the raw network as EDM, and the denoiser as a data prediction."""
    which, options = catalogue.EVERY[solver]
    draw = executor.plan_noise([3], (7,))
    x0 = np.linspace(-2, 2, 7)[None]

    def raw(x, t):
        return raw_network(x, np.log(80.0 * (1 - t)) / 4)

    results = []
    for prediction, field in ((pfc.EDM(SD), raw), ("data", lambda x, t: denoiser(x, 80.0 * (1 - t)))):
        plan = pfc.plan(which, grid=paths.lambda_grid("ve", 6), path="ve", prediction=prediction, **options)
        results.append(executor.run(plan.to_dict(), field, x0, draw)[-1])
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [80.0, 3.0, 0.5, 0.002])
def test_conversions_of_a_preconditioned_network(sigma):
    path, t = pfc.paths.VE(80.0), 1 - sigma / 80.0
    sigma = float(path.coefficients(t)[1])
    x = np.linspace(-3, 3, 5)
    scale = pfc._core.ask(path._core, pfc.EDM(SD), None, t)[1]
    assert scale == pytest.approx(1 / math.sqrt(sigma**2 + SD**2), rel=1e-15)
    out, data = raw_network(scale * x, np.log(sigma) / 4), denoiser(x, sigma)
    for target, value in (
        (pfc._core.Prediction.data, data),
        (pfc._core.Prediction.noise, (x - data) / sigma),
        (pfc._core.Prediction.velocity, -80.0 * (x - data) / sigma),
    ):
        p, q = pfc._core.convert(path._core, pfc.EDM(SD), target, t)
        np.testing.assert_allclose(p * x + q * out, value, rtol=1e-11, atol=1e-11)


def test_gradients_guidance_halves_and_loops_of_ones_own_see_the_same_input():
    """The scaling is the row's, so every way of running a plan has it: also the first evaluation's."""
    plan, x0 = edm_plan(5), X0.float()
    wanted = pfc.Sampler(plan)(edm_field(), x0=x0)
    torch.testing.assert_close(pfc.Sampler(plan)(edm_field(), x0=x0, enable_grad=True).detach(), wanted)

    run = pfc.Sampler(plan).start(x0=x0, field=edm_field())
    for step in run:
        run.step(edm_field().net(step.x, step.time))
    assert torch.equal(run.x, wanted)

    def conditional(x, c_noise, y):
        return edm_field().net(x, c_noise) + 0 * y

    guided = pfc.Sampler(plan, guidance=pfc.CFG(3.0))(
        pfc.Field(conditional, pfc.EDM(SD), "ve"),
        x0=x0, cond={"y": torch.zeros(2, 1)}, uncond={"y": torch.zeros(2, 1)},
    )  # fmt: skip
    torch.testing.assert_close(guided, wanted, rtol=1e-4, atol=1e-4)

    seen = []
    half = pfc.Sampler(plan)(edm_field(seen=seen, dtype=torch.bfloat16), x0=x0)
    assert seen[0][0].dtype == torch.bfloat16
    torch.testing.assert_close(seen[0][0], (x0 / math.sqrt(80.0**2 + SD**2)).bfloat16())
    assert half.isfinite().all()


def test_the_predicted_data_of_a_preconditioned_network():
    plan = pfc.plan("ddim", grid=[0.5, 0.9], path="ve", prediction=pfc.EDM(SD))
    seen = []
    pfc.Sampler(plan)(edm_field(), x0=X0, callback=lambda *args: seen.append(args[-1].clone()))
    np.testing.assert_allclose(seen[0].numpy(), denoiser(X0.numpy(), 40.0), rtol=1e-12)


def test_rows_without_an_evaluation_ask_for_no_time():
    """c_noise is minus infinity at t = 1, where nothing is evaluated."""
    description = edm_plan(3).to_dict()
    description["rows"].append({"evaluates": False, "t": 1.0, "step": 2, "a": 1.0, "a_minus_1": 0.0})
    plan = pfc.Plan.from_dict(description)
    assert plan.row_times[-1] == plan.row_times[-2] < 1.0
    assert torch.equal(pfc.Sampler(plan)(edm_field(), x0=X0), pfc.Sampler(edm_plan(3))(edm_field(), x0=X0))


def test_a_field_called_directly_scales_its_input():
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    seen = []
    t = torch.tensor([0.5, 0.5], dtype=torch.float64)
    out = edm_field(seen=seen)(x, t)
    torch.testing.assert_close(seen[0][0], x / math.sqrt(40.0**2 + SD**2))
    np.testing.assert_allclose(out.numpy(), raw_network(seen[0][0].numpy(), math.log(40.0) / 4))
    pfc.Field(lambda x, t: seen.append(x) or x, pfc.EDM(SD), "ve")(x, torch.tensor([0.5, 0.75]).double())
    torch.testing.assert_close(seen[-1][1], x[1] / math.sqrt(20.0**2 + SD**2))


def test_a_scaled_input():
    """A noise predictor of a VE path whose network wants x / sqrt(1 + sigma^2), as k-diffusion feeds VP-trained networks."""
    exact = fields.gaussian("ve")

    def scale(t):
        return 1 / math.sqrt(1 + (80.0 * (1 - t)) ** 2)

    def net(x, t):
        return exact.of("noise")(x / scale(t), t)

    prediction = pfc.Scaled("noise", scale, name="unit variance")
    grid = [0.2, 0.5, 0.9, 0.99]
    plan = pfc.plan("heun", grid=grid, path="ve", prediction=prediction)
    plain = pfc.plan("heun", grid=grid, path="ve", prediction="noise")
    found = pfc.Sampler(plan)(pfc.Field(as_net(net), prediction, "ve"), x0=X0)
    wanted = pfc.Sampler(plain)(pfc.Field(as_net(exact.of("noise")), "noise", "ve"), x0=X0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)

    loaded = pfc.Plan.from_json(plan.to_json())
    assert loaded == plan and loaded.prediction == prediction
    assert torch.equal(pfc.Sampler(loaded)(pfc.Field(as_net(net), prediction, "ve"), x0=X0), found)
    other = pfc.Scaled("noise", lambda t: 1.0 + t, name="unit variance")
    with pytest.raises(ValueError, match="prediction: the plan is for SavedScaling"):
        pfc.Sampler(loaded)(pfc.Field(as_net(net), other, "ve"), x0=X0)
    with pytest.raises(ValueError, match="came from a plan's JSON"):
        pfc.plan("heun", grid=grid, path="ve", prediction=loaded.prediction)


def test_edm_in_json():
    plan = edm_plan(4)
    assert plan.to_dict()["prediction"] == {"name": "edm", "sigma_data": SD}
    loaded = pfc.Plan.from_json(plan.to_json())
    assert loaded == plan and loaded.prediction == pfc.EDM(SD)
    assert torch.equal(pfc.Sampler(loaded)(edm_field(), x0=X0), pfc.Sampler(plan)(edm_field(), x0=X0))
    assert "input scaled by" in str(plan) and "EDM" in str(plan)
    with pytest.raises(ValueError, match=r"the plan is for EDM\(sigma_data=0\.5\), the field predicts EDM"):
        pfc.Sampler(plan)(pfc.Field(lambda x, t: x, pfc.EDM(1.0), "ve"), x0=X0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pfc.EDM(0.0), ["sigma_data", "positive", "0.0"]),
        (lambda: pfc.EDM("1"), ["sigma_data", "number", "str"]),
        (lambda: pfc.Scaled("edm", lambda t: 1.0), ["of", "'edm'", "velocity"]),
        (lambda: pfc.Scaled("noise", 2.0), ["in_scale", "function", "float"]),
        (lambda: pfc.Scaled("noise", lambda t: 0.0), ["in_scale(0.03125) is 0.0", "positive"]),
        (lambda: pfc.Scaled("noise", lambda t: 1.0, name=3), ["name", "string"]),
        (lambda: pfc.plan("euler", 2, prediction="x0"), ["prediction", "'x0'", "velocity", "EDM"]),
        (lambda: pfc.Field(lambda x, t: x, prediction=3), ["prediction", "3"]),
        (lambda: pfc.interpolate(torch.zeros(1, 1), torch.zeros(1), seeds=[0], prediction=pfc.EDM()), ["EDM"]),
        (lambda: pfc.Plan.from_dict({**edm_plan(2).to_dict(), "prediction": {"name": "f"}}), ["prediction", "'f'"]),
        (lambda: pfc.Plan.from_dict({**edm_plan(2).to_dict(), "prediction": {"name": "edm", "s": 1}}), ["'edm'", "s"]),
    ],
)  # fmt: skip
def test_refused(call, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
