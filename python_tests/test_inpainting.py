"""Inpainting on every solver, and starts from data: against the formula in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore.edits import FRESH
from reference import catalogue, executor, stochastic
from reference.noise import normals
from reference.torch_fields import drift

GRID = [0.0, 0.2, 0.3, 0.55, 0.7, 1.0]
CASES = {**{name: (name, {}) for name in pfc.solvers()}, **catalogue.FROM_ZERO}
PLANS = {name: pfc.plan(solver, grid=GRID, **options) for name, (solver, options) in CASES.items()}
PLANS |= {
    name: pfc.Plan.from_dict(stochastic.describe(name, np.linspace(0.1, 0.9, 6)))
    for name in stochastic.BUILDERS
}  # fmt: skip
PLANS["backwards"] = pfc.plan("dpmpp_2m", grid=GRID[::-1])
# One a family where the numbers alone differ.
FEW = ["euler", "heun", "rk4", "ab3", "dpmpp_2m", "unipc", "edm_heun-churn", "stochastic_heun", "churn"]
SEEDS = [3, 4, 5]
SHAPE = (2, 6)


def as_numpy(x, t):
    return x * (t - 0.7) + 0.3 * t


def make(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    soft = torch.rand(3, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    soft[:, 0, :2], soft[:, 1, :2] = 1.0, 0.0
    return known, soft


def philox(stream, draw):
    return normals(SEEDS, 12, stream=stream, draw=draw).astype(np.float64).reshape(3, *SHAPE)


def reference(plan, x0, mask, known, noise):
    """noise(step) is the known region's."""
    mask, known = mask.double().numpy(), known.double().numpy()
    alpha, sigma, _, _ = plan.path.coefficients(plan.times[1:])

    def edit(step, x):
        return mask * (alpha[step] * known + sigma[step] * noise(step)) + (1 - mask) * x

    draw = executor.plan_noise(SEEDS, SHAPE)
    return executor.run(plan.to_dict(), as_numpy, x0.numpy(), draw, edit)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_every_solver(name, fresh, grad):
    plan = PLANS[name]
    known, soft = make()
    x0 = pfc.randn(SEEDS, SHAPE, dtype=torch.float64)
    if plan.times[0] != 0.0 and not fresh:
        # The state's noise is not known there: the seeds'.
        fixed = philox(0, 0)
        x0 = pfc.randn([7, 8, 9], SHAPE, dtype=torch.float64)
    else:
        fixed = x0.numpy()

    def noise(step):
        return philox(1, FRESH + step) if fresh else fixed

    for mask in (soft, soft > 0.5, soft[:1, :1], (soft > 0.5)[:, :, :1]):
        found = pfc.Sampler(plan)(
            drift, x0=x0, seeds=SEEDS, mask=mask, known=known, enable_grad=grad, return_trajectory=True,
            known_noise="fresh" if fresh else "start",
        )  # fmt: skip
        wanted = reference(plan, x0, mask, known, noise)
        np.testing.assert_allclose(found.states[1:].numpy(), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "path", ["linear", "trigonometric", "vp", "linear_vp", pfc.paths.VE(3.0), "polynomial"]
)
@pytest.mark.parametrize("fresh", ["start", "fresh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_known_region_is_exact_at_the_end(path, fresh, dtype):
    """To the bit, for both kinds of mask; and where the mask is 0 the state is the row's."""
    plan = pfc.plan("euler_ancestral", 4, path=path, prediction="data")
    known, soft = make(dtype)
    sampler, field = pfc.Sampler(plan), pfc.Field(drift, "data", path)
    for mask in (soft, soft > 0.5):
        found = sampler(
            field, shape=SHAPE, seeds=SEEDS, dtype=dtype, mask=mask, known=known, known_noise=fresh
        )
        assert torch.equal(found[mask == 1], known[mask == 1])
        assert torch.equal(found[:, 0, :2], known[:, 0, :2])
    nothing = sampler(field, shape=SHAPE, seeds=SEEDS, dtype=dtype, known=known, mask=torch.zeros(1, 1, 1))
    assert torch.equal(nothing, sampler(field, shape=SHAPE, seeds=SEEDS, dtype=dtype))


def test_with_the_start_noise_the_known_region_follows_its_path():
    """For a path's own velocity every solver is exact there, and the edit changes nothing: x_t = alpha x1 + sigma x0."""
    known, _ = make()
    x0 = pfc.randn(SEEDS, SHAPE, dtype=torch.float64)
    plan = pfc.plan("ab3", 6)
    found = pfc.Sampler(plan)(
        lambda x, t: known - x0, x0=x0, mask=torch.ones(1, 1, 1), known=known, return_trajectory=True
    )
    plain = pfc.Sampler(plan)(lambda x, t: known - x0, x0=x0, return_trajectory=True)
    torch.testing.assert_close(found.states, plain.states, rtol=0, atol=1e-14)


def test_the_start_noise_of_a_ve_path_is_the_state_over_its_scale():
    path = pfc.paths.VE(8.0)
    known, _ = make()
    for arguments in (
        {"x0": 8.0 * pfc.randn(SEEDS, SHAPE, dtype=torch.float64)},
        {"shape": SHAPE, "seeds": SEEDS, "dtype": torch.float64},
    ):
        found = pfc.Sampler(pfc.plan("euler", 4, path=path))(
            pfc.Field(drift, path=path), mask=torch.ones(1, 1, 1), known=known, return_trajectory=True, **arguments
        )  # fmt: skip
        wanted = known.numpy() + 8.0 * 0.5 * philox(0, 0)
        np.testing.assert_allclose(found.states[2].numpy(), wanted, rtol=1e-14)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("fresh", ["start", "fresh"])
def test_alone_as_in_a_batch_and_in_the_callers_loop(name, fresh):
    plan = PLANS[name]
    sampler = pfc.Sampler(plan)
    shape = (1027,)
    x0, known = pfc.randn(range(9), shape), pfc.randn(range(9), shape, stream=2)
    soft = pfc.randn(range(9), shape, stream=2, draw=1).sigmoid()
    for mask in (soft, soft > 0.5):

        def sample(rows, grad=False, mask=mask):
            return sampler(
                drift, x0=x0[rows], seeds=rows, mask=mask[rows], known=known[rows], known_noise=fresh,
                enable_grad=grad,
            )  # fmt: skip

        batch = sample([*range(9)])
        assert torch.equal(sample([4])[0], batch[4])
        assert torch.equal(sample([8, 3]), batch[[8, 3]])
        assert torch.equal(sample([*range(9)], grad=True), batch)
        run = sampler.start(x0=x0, seeds=range(9), mask=mask, known=known, known_noise=fresh)
        for step in run:
            run.step(drift(step.x, step.time))
        assert torch.equal(run.x, batch)


@pytest.mark.parametrize("grad", [False, True])
def test_noise_of_a_generator(grad):
    """The start, the plan's draws and the known region's, in the order of time."""
    plan = pfc.plan("consistency", 3)
    known, soft = make(torch.float32)
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(3, *SHAPE, generator=generator) for _ in range(6)]
    assert plan.draws == 2
    found = pfc.Sampler(plan)(
        drift, shape=SHAPE, batch=3, noise=torch.Generator().manual_seed(3), mask=soft, known=known,
        known_noise="fresh", return_trajectory=True, enable_grad=grad,
    )  # fmt: skip
    order = {"plan": [drawn[1], drawn[3]], "known": [drawn[2], drawn[4], drawn[5]]}
    x, times = drawn[0], plan.times
    for step in range(3):
        t, end = times[step], times[step + 1]
        data = x + (1 - t) * drift(x, torch.full((3,), t))
        x = end * data + (1 - end) * (order["plan"][step] if step < 2 else 0.0)
        x = soft * (end * known + (1 - end) * order["known"][step]) + (1 - soft) * x
        torch.testing.assert_close(found.states[step + 1], x)


def test_the_hook_comes_first():
    known, _ = make(torch.float32)
    found = pfc.Sampler(pfc.plan("heun", 3))(
        drift, shape=SHAPE, seeds=SEEDS, mask=torch.ones(1, 1, 1), known=known, hook=lambda i, t, x: 0 * x
    )
    assert torch.equal(found, known)


def test_arguments_are_not_written():
    known, soft = make(torch.float32)
    x0 = pfc.randn(SEEDS, SHAPE)
    before = known.clone(), soft.clone(), x0.clone()
    for fresh in ("start", "fresh"):
        pfc.Sampler(PLANS["unipc"])(drift, x0=x0, seeds=SEEDS, mask=soft, known=known, known_noise=fresh)
    for kept, now in zip(before, (known, soft, x0), strict=True):
        assert torch.equal(kept, now)


def test_gradients():
    plan = pfc.plan("dpmpp_2m", 3)
    known, soft = make()
    known = known[:1].clone().requires_grad_()
    soft = soft[:1].mul(0.8).add(0.1).requires_grad_()
    x0 = pfc.randn([3], SHAPE, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x0, known, mask: pfc.Sampler(plan)(drift, x0=x0, known=known, mask=mask, enable_grad=True),
        (x0, known, soft),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"mask": torch.ones(1, 1)}, ValueError, "known is missing"),
        ({"known": torch.ones(3, 4)}, ValueError, "mask is missing"),
        ({"mask": torch.ones(4), "known": torch.ones(3, 4)}, ValueError, r"mask has shape \[4\].*state's \[3, 4\]"),
        ({"mask": torch.ones(1, 1), "known": torch.ones(2, 4)}, ValueError, r"known has shape \[2, 4\].*\[3, 4\]"),
        ({"mask": torch.ones(1, 1).long(), "known": torch.ones(3, 4)}, TypeError, "mask must be bool or floating point"),
        ({"mask": torch.full((1, 1), 1.5), "known": torch.ones(3, 4)}, ValueError, r"mask must lie in \[0, 1\]"),
        ({"mask": torch.full((1, 1), torch.nan), "known": torch.ones(3, 4)}, ValueError, r"mask must lie in \[0, 1\]"),
        ({"mask": torch.ones(1, 1), "known": torch.ones(3, 4).long()}, TypeError, "known must be floating point"),
        ({"mask": 1.0, "known": torch.ones(3, 4)}, TypeError, "mask must be a tensor, got float"),
        (
            {"mask": torch.ones(1, 1), "known": torch.ones(3, 4), "known_noise": "old"}, ValueError,
            "known_noise must be 'start' or 'fresh', got 'old'",
        ),
        (
            {"mask": torch.ones(1, 1), "known": torch.ones(3, 4), "known_noise": "fresh", "noise": {}}, ValueError,
            "known_noise='fresh' draws from seeds or generators",
        ),
    ],
)  # fmt: skip
def test_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        pfc.Sampler(pfc.plan("euler", 3))(drift, x0=torch.ones(3, 4), **arguments)
