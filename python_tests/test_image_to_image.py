"""Trajectories that begin from data inside (0, 1), and the grids that begin there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference.torch_fields import drift

SEEDS = [3, 4, 5]
DATA = pfc.randn([1, 2, 3], (2, 5), stream=2)
PATHS = ["linear", "trigonometric", "vp", "linear_vp", pfc.paths.VE(3.0), "polynomial"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
def test_the_state_is_the_data_with_noise(solver, path):
    plan = pfc.plan(solver, 3, grid=pfc.grids.uniform().partial(0.6), path=path)
    alpha, sigma, _, _ = (float(c[0]) for c in plan.path.coefficients([plan.times[0]]))
    noise = pfc.randn(SEEDS, (2, 5))
    field, sampler = pfc.Field(drift, path=path), pfc.Sampler(plan)
    found = sampler(field, init=DATA, seeds=SEEDS)
    assert torch.equal(found, sampler(field, x0=DATA * alpha + noise * sigma, seeds=SEEDS))
    assert torch.equal(sampler(field, init=DATA[1:2], seeds=[4])[0], found[1])


def test_noise_of_every_kind():
    sampler = pfc.Sampler(pfc.plan("euler", 3, grid=[0.25, 0.5, 0.75, 1.0]))
    xi = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(8))
    wanted = sampler(drift, x0=0.25 * DATA + 0.75 * xi)
    assert torch.equal(sampler(drift, init=DATA, noise={"start": xi}), wanted)
    assert torch.equal(sampler(drift, init=DATA, noise=torch.Generator().manual_seed(8)), wanted)
    torch.manual_seed(2)
    one, two = sampler(drift, init=DATA), sampler(drift, init=DATA)
    assert not torch.equal(one, two)
    torch.manual_seed(2)
    assert torch.equal(sampler(drift, init=DATA), one)
    run = sampler.start(init=DATA, noise={"start": xi})
    for step in run:
        run.step(drift(step.x, step.time))
    assert torch.equal(run.x, wanted)


def test_data_is_not_written_and_says_dtype_and_batch():
    before = DATA.clone()
    for dtype, state in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        plan = pfc.plan("heun", 2, grid=pfc.grids.uniform().partial(0.5))
        found = pfc.Sampler(plan)(drift, init=DATA.to(dtype), seeds=SEEDS)
        assert found.dtype == state and found.shape == DATA.shape
    assert torch.equal(DATA, before)


def test_a_strength_of_one_is_noise_alone():
    """At t = 0 of a path with alpha = 0 the data does not count, and the start is that of shape=."""
    sampler = pfc.Sampler(pfc.plan("heun", 4, grid=pfc.grids.uniform().partial(1.0)))
    assert torch.equal(sampler(drift, init=DATA, seeds=SEEDS), sampler(drift, shape=(2, 5), seeds=SEEDS))


def test_gradients_reach_the_data():
    sampler = pfc.Sampler(pfc.plan("heun", 2, grid=[0.4, 0.7, 1.0]))
    data = DATA[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda init: sampler(drift, init=init, seeds=[1], enable_grad=True), (data,)
    )


def test_inpainting_of_an_image_keeps_its_noise():
    """The known region is the image's own path: with the image as `known` the start is consistent with it."""
    plan = pfc.plan("euler", 4, grid=pfc.grids.uniform().partial(0.5))
    found = pfc.Sampler(plan)(
        drift, init=DATA, seeds=SEEDS, mask=torch.ones(1, 1, 1), known=DATA, return_trajectory=True
    )
    alpha, sigma, _, _ = plan.path.coefficients(plan.times)
    wanted = (
        alpha[:, None, None, None] * DATA.numpy()
        + sigma[:, None, None, None] * pfc.randn(SEEDS, (2, 5)).numpy()
    )
    np.testing.assert_allclose(found.states.numpy(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("whole", [1, 2, 7, 20, 28, 50])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.6, 0.75, 0.95, 1.0])
@pytest.mark.parametrize("base", [pfc.grids.uniform(), pfc.grids.shifted(3.0), pfc.grids.karras()], ids=repr)
def test_partial_keeps_the_end_of_the_base(base, strength, whole):
    """n steps of a strength end as some grid of m steps does, n / m being the strength as closely as it goes."""
    for steps in (1, 3, 12):
        times = base.partial(strength).times(steps)
        full = base.times(round(steps / strength))
        assert times == full[-steps - 1 :]
        assert abs(steps / (len(full) - 1) - strength) <= 0.5 * strength / (len(full) - 1) + 1e-12
    fixed = pfc.grids.times(base.times(whole)).partial(strength)
    assert fixed.fixed_steps == max(1, round(strength * whole))
    assert fixed.times(fixed.fixed_steps) == base.times(whole)[-fixed.fixed_steps - 1 :]


def test_partial_of_a_diffusers_call():
    """num_inference_steps=20, strength=0.6: 12 steps from the noise level 0.6 on."""
    times = pfc.grids.uniform().partial(0.6).times(12)
    np.testing.assert_allclose(times, 1 - np.linspace(0.6, 0.0, 13), atol=1e-15)
    plan = pfc.plan("euler", 12, grid=pfc.grids.shifted(3.0).partial(0.6))
    assert list(plan.times) == pfc.grids.shifted(3.0).times(20)[8:]
    assert pfc.plan("heun", nfe=9, grid=pfc.grids.uniform().partial(0.5)).nfe == 9


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pfc.grids.uniform().partial(0.0), ValueError, r"strength must lie in \(0, 1\], got 0.0"),
        (lambda: pfc.grids.uniform().partial(1.5), ValueError, "got 1.5"),
        (lambda: pfc.grids.uniform().partial("half"), TypeError, "strength must be a number, got str"),
        (lambda: pfc.grids.times([0.0, 0.5, 1.0]).partial(0.5).times(2), ValueError, "steps is 2, but strength 0.5"),
        (lambda: sample(init=DATA, x0=DATA), ValueError, "exactly one of .* must be given, got both x0 and init"),
        (lambda: sample(), ValueError, "exactly one of x0, shape and init must be given, got neither"),
        (lambda: sample(init=DATA, batch=2), ValueError, "batch is 2, init has 3 samples"),
        (lambda: sample(init=DATA, seeds=[1]), ValueError, "seeds has 1 entries, the batch has 3 samples"),
        (lambda: sample(init=DATA.long()), TypeError, "init must be floating point, got torch.int64"),
        (lambda: sample(init=[1.0]), TypeError, "init must be a tensor, got list"),
        (lambda: sample(shape=(2,), seeds=[1]), ValueError, "begins at t = 0.5.*init= begins there from data"),
    ],
)  # fmt: skip
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def sample(**arguments):
    return pfc.Sampler(pfc.plan("euler", grid=[0.5, 1.0]))(drift, **arguments)
