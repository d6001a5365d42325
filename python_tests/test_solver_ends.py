"""Whole trajectories from t = 0 to t = 1: finite for every solver on every path, and exact on point data where the maths says
so. And UniPC against its paper's loop, state by state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, executor, fields, unipc
from reference import paths as reference
from reference.torch_fields import as_net

WHOLE = {name: case for name, case in catalogue.EVERY.items() if "sigma/alpha" not in name}
IN_LAMBDA = ("ddim", "dpmpp", "unipc", "deis", "res", "edm_heun", "consistency", "euler_ancestral")
# Their score does not vanish on point data, so a last step of finite length misses the point.
DIFFUSE = ("euler_maruyama", "stochastic_heun")
X0 = np.linspace(-2.0, 2.0, 9)


NOISE = np.random.default_rng(0).normal(size=(20, *X0.shape))


def draw(n):
    return NOISE[n]


def prediction_for(path):
    # The velocity of a polynomial path vanishes at t = 0 and determines nothing.
    return "data" if path == "polynomial" else "velocity"


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("name", WHOLE)
def test_finite_from_zero_to_one(path, name):
    solver, options = WHOLE[name]
    field = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6]).of(prediction_for(path))
    for steps in (1, 2, 3, 6):
        plan = pfc.plan(solver, steps, path=path, prediction=prediction_for(path), **options)
        start = X0 * pfc.paths.get(path).noise_scale
        states = executor.run(plan.to_dict(), field, start, draw)
        assert len(states) == steps
        assert np.isfinite(states).all()


def is_exact(path, name):
    """On point data: a solver in lambda or rho on every path, one in t (so a Runge-Kutta start) on the linear path alone."""
    solver, options = WHOLE[name]
    if solver in DIFFUSE:
        return False
    return path == "linear" or (solver.startswith(IN_LAMBDA) and options.get("start") != "single")


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path in reference.EVERY for name in WHOLE if is_exact(path, name)]
)
def test_point_data(path, name):
    """The predicted data is the point at every time, so the answer is it, however few the steps."""
    solver, options = WHOLE[name]
    field = fields.Mixture(path, [0.7], [0.0]).of(prediction_for(path))
    for steps in (1, 2, 4, 11):
        plan = pfc.plan(solver, steps, path=path, prediction=prediction_for(path), **options)
        found = executor.run(plan.to_dict(), field, X0, draw)[-1]
        np.testing.assert_allclose(found, 0.7, atol=1e-12)


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_papers_loop(path, variant, order):
    """A plan's state is the predicted one, and its rows add the correction of the step before: the same states."""
    mixture = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])
    for grid in (reference.lambda_grid(path, 9), np.array([0.06, 0.1, 0.3, 0.35, 0.8, 0.9])):
        plan = pfc.plan("unipc", grid=grid, path=path, order=order, variant=variant)
        wanted = unipc.solve(mixture.means, path, X0, list(grid), order, variant)
        found = executor.run(plan.to_dict(), mixture.of("velocity"), X0)
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "name", ["unipc-3-bh2", "deis-3-rho", "edm_heun-churn", "stochastic_heun-sigma", "dpmpp_3m"]
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_what_a_callers_loop_sees_on_the_grid(name, dtype, scale, poison):
    """After a row that completes a step, run.x, the callback's state and the trajectory's are one: the state at that time."""
    solver, options = catalogue.EVERY[name]
    plan = pfc.plan(solver, grid=[0.1, 0.3, 0.4, 0.7, 0.9, 0.95], **options)
    sampler = pfc.Sampler(plan, None if scale is None else pfc.CFG(scale))

    def net(x, t, y):
        return (x.float() * (t.float()[:, None] - 0.7) + y[:, None]).to(x.dtype)

    x0, y, null = pfc.randn(range(3), (35,)), torch.tensor([0.5, -1.0, 2.0]), torch.zeros(3)
    field, seen = pfc.Field(net, dtype=dtype), []
    call = {"x0": x0, "seeds": [1, 2, 3], "cond": {"y": y}} | (
        {} if scale is None else {"uncond": {"y": null}}
    )
    found = sampler(field, return_trajectory=True, **call).states
    sampler(field, callback=lambda step, nfe, t, x, denoised: seen.append(x.clone()), **call)
    assert torch.equal(torch.stack(seen), found[1:])
    run = sampler.start(x0=x0, seeds=[1, 2, 3], field=field)
    assert torch.equal(run.x, found[0])
    for step in run:
        row = plan.rows[step.row]
        run.step(net(step.x, step.time, y), None if scale is None else net(step.x, step.time, null))
        if row.completes_step:
            assert torch.equal(run.x, found[step.index + 1])


def test_the_state_on_the_grid_tracks_the_flow():
    """With many steps every state between is near the exact flow there: raised and predicted points are not mistaken for it."""
    mixture = fields.Mixture("linear", [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])
    grid = reference.lambda_grid("linear", 60)
    x0 = torch.from_numpy(X0)[None]
    for name in ("unipc-2-bh2", "unipc-3-bh1", "deis-3-rho", "edm_heun", "dpmpp_3m", "res-3", "dopri5"):
        solver, options = catalogue.EVERY[name]
        found = pfc.Sampler(pfc.plan(solver, grid=grid, **options))(
            as_net(mixture.of("velocity")), x0=x0, return_trajectory=True
        )
        for i in (1, 7, 30, 60):
            exact = mixture.flow(X0, grid[0], grid[i])
            assert np.abs(found.states[i, 0].numpy() - exact).max() < 2e-3, (name, i)
