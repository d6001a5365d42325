"""What once went wrong without a word: plans, fields and guidance that meet in unusual ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pyflowcore as pfc

X0 = torch.linspace(-2.0, 2.0, 12).reshape(3, 4)
COND = {"y": torch.tensor([1.0, 2.0, 1.5])}
NULL = {"y": torch.tensor([0.5, 0.5, 0.2])}


def net(x, t, y):
    return torch.tanh(x * y[:, None]) + 0.1


@pytest.mark.parametrize(
    ("path", "prediction"), [("vp", "velocity"), ("vp", "noise"), ("trigonometric", "v"), ("linear", "data")]
)
def test_a_loop_without_a_field_guides_on_the_plans_path(path, prediction):
    """The data space of a projection is that of the plan's path, whoever evaluates the network."""
    plan = pfc.plan("ddim", 4, path=path, prediction=prediction, grid=[0.1, 0.3, 0.6, 0.8, 0.9])
    sampler = pfc.Sampler(plan, pfc.APG(3.0, eta=0.2, norm=0.3, momentum=-0.4))
    run = sampler.start(x0=X0)
    for step in run:
        run.step(net(step.x, step.time, **COND), net(step.x, step.time, **NULL))
    field = pfc.Field(net, prediction, path)
    assert torch.equal(run.x, sampler(field, x0=X0, cond=COND, uncond=NULL))


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_gradients_asked_for_inside_no_grad(solver):
    """enable_grad is the caller's word, whatever the mode around the call."""
    sampler = pfc.Sampler(pfc.plan(solver, 4))
    found = []
    for mode in (True, False):
        x = X0.clone().requires_grad_()
        with torch.set_grad_enabled(mode):
            result = sampler(lambda x, t: torch.sin(x), x0=x, enable_grad=True)
        found.append(torch.autograd.grad(result.sum(), x)[0])
    assert torch.equal(*found)
    assert bool((found[0] != 0).all())


@pytest.mark.parametrize("along", ["trigonometric", "linear", "ve"])
@pytest.mark.parametrize("solver", ["heun", "unipc"])
def test_levels_that_no_float64_time_names(along, solver):
    """On linear_vp sigma rises like a root: 1 - t near 5e-13 is the nearest time to sigma = 1e-6. The field is asked there, and
    its answer converted by that level; an exact field's data then carries the sample to the end."""
    grid = [0.01, 0.3, 0.5, 0.8, 1.0 - 1e-6, 1.0]
    plan = pfc.plan(solver, path="linear_vp", along=along, grid=grid, prediction="noise")
    path = pfc.paths.get("linear_vp")
    m = 0.7

    def noise(x, t):  # of data at the point m
        alpha, sigma, _, _ = path.coefficients(t.numpy())
        shape = (-1, 1)
        return (x - torch.from_numpy(alpha).reshape(shape) * m) / torch.from_numpy(sigma).reshape(shape)

    alpha, sigma, _, _ = pfc.paths.get(along).coefficients(np.array([0.01]))
    x0 = float(alpha[0]) * m + float(sigma[0]) * X0.double()
    last = [row for row in plan.rows if row.evaluates][-1]
    assert last.field_t == pytest.approx(1.0, abs=1e-5)
    found = pfc.Sampler(plan)(pfc.Field(noise, "noise", "linear_vp"), x0=x0)
    assert float((found - m).abs().max()) < 1e-5


def test_coefficients_beyond_the_states_dtype():
    plan = pfc.plan("dpmpp_2m", grid=[1e-40, 0.5, 1.0], prediction="noise")
    field = pfc.Field(lambda x, t: torch.tanh(x), "noise")
    with pytest.raises(ValueError, match=r"p of row 0 is 1e\+40 at step 0.*float32"):
        pfc.Sampler(plan)(field, x0=X0)
    assert bool(pfc.Sampler(plan)(field, x0=X0.double()).isfinite().all())
    with pytest.raises(RuntimeError, match="not finite in the state's dtype"):
        torch.ops.pyflowcore.combine_(X0.clone(), None, None, None, None, X0, None, None, None, plan.table, 0)


def test_an_output_of_no_branch_is_no_output():
    table = pfc.plan("euler", 2).table
    with pytest.raises(ValueError, match="out has shape"):
        pfc.ops.combine_(torch.ones(2, 3), table, 0, out=torch.empty(0, 3))
    with pytest.raises(RuntimeError, match="out has shape"):
        torch.ops.pyflowcore.combine(torch.ones(2, 3), None, [], [torch.empty(0, 3)], None, None, table, 0)


def test_descriptions_say_the_fields_times():
    """A row of a plan along another path without the field's own time would ask it at the plan's."""
    along = pfc.plan("ddim", path="vp", prediction="noise", along="linear", grid=[0.1, 0.5, 0.9]).to_dict()
    for row in along["rows"]:
        row.pop("field_t", None)
    with pytest.raises(ValueError, match="field_t is missing"):
        pfc.Plan.from_dict(along)
    plain = pfc.plan("ddim", 2).to_dict()
    plain["rows"][0]["field_t"] = 0.2
    with pytest.raises(ValueError, match="field_t is given"):
        pfc.Plan.from_dict(plain)
    plain = pfc.plan("ddim", 2).to_dict()
    plain["rows"][0]["in_scale"] = 0.0
    with pytest.raises(ValueError, match=r"in_scale is 0.*positive"):
        pfc.Plan.from_dict(plain)


def test_ancestral_steps_need_a_falling_sigma():
    path = pfc.paths.custom(lambda t: 5 * t, lambda t: 1 + t, name="up")
    given = {"grid": [0.1, 0.3, 0.5], "path": path, "prediction": "data"}
    with pytest.raises(ValueError, match="sigma must fall"):
        pfc.plan("euler_ancestral", **given)
    assert pfc.plan("euler_ancestral", eta=0.0, **given).draws == 0


def test_learned_plans_go_along_the_fields_own_path():
    along = pfc.plan("euler", 3, along="trigonometric")
    given = {"nfe": 3, "shape": (2,), "samples": 32, "validation": 16, "iterations": 1}
    for name in ("init", "teacher"):
        with pytest.raises(ValueError, match=f"{name} integrates along the trigonometric path"):
            pfc.fit_plan(lambda x, t: torch.tanh(x), **given, **{name: along})


def test_a_loaded_plan_reads_the_fields_scaling():
    scaled = pfc.Scaled("noise", lambda t: 1 / math.hypot(1.0, 80 * (1 - t)), name="unit variance")
    plan = pfc.Plan.from_json(pfc.plan("euler", 6, path="ve", prediction=scaled).to_json())
    field = pfc.Field(lambda x, t: torch.tanh(x), scaled, "ve")
    seen = []
    pfc.Sampler(plan)(field, x0=X0, callback=lambda *now: seen.append(now[-1]))
    assert len(seen) == 6 and all(data is not None for data in seen)


def test_a_hook_may_return_a_view_of_the_state():
    square = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    sampler = pfc.Sampler(pfc.plan("unipc", 4))
    views = sampler(lambda x, t: torch.tanh(x), x0=square, hook=lambda step, t, x: x.transpose(1, 2))
    copies = sampler(lambda x, t: torch.tanh(x), x0=square, hook=lambda step, t, x: x.transpose(1, 2).clone())
    assert torch.equal(views, copies)


def test_given_noise_with_a_gradient_stays_out_of_the_buffers():
    plan = pfc.plan("euler_ancestral", 3)
    noise = torch.randn(3, *X0.shape, requires_grad=True)
    run = pfc.Sampler(plan).start(x0=X0, noise=noise)
    for step in run:
        run.step(torch.tanh(step.x))
    assert not run.buffers.slots.requires_grad


def test_a_momentum_stays_where_its_samples_scale_is_1():
    """Whatever else is in the batch, and whether the branch is left out or not: alone, captured, with a gradient."""
    sampler = pfc.Sampler(pfc.plan("ab2", 8), pfc.APG(3.0, momentum=-0.5))

    def mixed(t):
        return torch.tensor([1.0, 3.0, 3.0]) if t < 0.4 else torch.tensor([3.0, 3.0, 3.0])

    together = sampler(net, x0=X0, cond=COND, uncond=NULL, guidance_scale=mixed)
    first = ({"y": COND["y"][:1]}, {"y": NULL["y"][:1]})
    alone = sampler(net, x0=X0[:1], cond=first[0], uncond=first[1], guidance_scale=lambda t: mixed(t)[:1])
    assert torch.equal(together[:1], alone)

    def late(t):
        return 1.0 if t < 0.4 else 3.0

    eager = sampler(net, x0=X0, cond=COND, uncond=NULL, guidance_scale=late)
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs"):
        graph = sampler.capture(net, shape=(4,), batch=3, cond=COND, uncond=NULL)
    assert torch.equal(graph(x0=X0, guidance_scale=late), eager)
    learned = torch.tensor(1.0, requires_grad=True)
    found = sampler(
        net,
        x0=X0,
        cond=COND,
        uncond=NULL,
        enable_grad=True,
        guidance_scale=lambda t: learned if t < 0.4 else 3.0,
    )
    assert torch.equal(found.detach(), eager)


def test_states_without_an_event_shape_are_guided():
    def flat(x, t, y):
        return torch.tanh(x * y)

    x0 = X0[:, 0].clone()
    for guided in (pfc.CFGZero(3.0), pfc.APG(3.0, momentum=-0.5), pfc.CFG(3.0).rescaled(0.5)):
        sampler = pfc.Sampler(pfc.plan("euler", 4), guided)
        plain = sampler(flat, x0=x0, cond=COND, uncond=NULL)
        graded = sampler(flat, x0=x0, cond=COND, uncond=NULL, enable_grad=True)
        assert torch.equal(plain, graded.detach())
        sampler(flat, x0=x0, cond=COND, uncond=NULL, callback=lambda *now: None)
