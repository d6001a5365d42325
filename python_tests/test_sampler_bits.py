"""Bits: alone or in a batch, any number of threads, the call or the caller's loop, one doubled batch or two calls."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, stochastic
from reference.torch_fields import drift

GRID = [0.0, 0.1, 0.3, 0.35, 0.7, 1.0]
PLANS = {name: pfc.plan(name, grid=GRID) for name in pfc.solvers()}
PLANS |= {
    name: pfc.plan(solver, grid=GRID, **options) for name, (solver, options) in catalogue.FROM_ZERO.items()
}
PLANS |= {
    name: pfc.Plan.from_dict(stochastic.describe(name, torch.linspace(0.1, 0.9, 6).double().numpy()))
    for name in stochastic.BUILDERS
}
SHAPES = [(), (1,), (7,), (3, 5), (1025,)]


def conditional(x, t, y=None):
    """Elementwise, and exact for a bfloat16 input as well: nothing depends on the batch."""
    y = torch.zeros_like(t) if y is None else y
    wide = (-1, *[1] * (x.dim() - 1))
    return (x.float() * (t.float() - 0.7).reshape(wide) + y.float().reshape(wide)).to(x.dtype)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alone_as_in_a_batch_of_64(name, shape):
    sampler = pfc.Sampler(PLANS[name])
    x0 = pfc.randn(range(64), shape)
    batch = sampler(drift, x0=x0, seeds=range(64))
    for i in (0, 1, 31, 63):
        assert torch.equal(sampler(drift, x0=x0[i : i + 1], seeds=[i])[0], batch[i])
    order = [*range(63, -1, -1)]
    assert torch.equal(sampler(drift, x0=x0[order], seeds=order), batch[order])


@pytest.mark.parametrize("name", ["heun", "stochastic_heun"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_guided_alone_as_in_a_batch(name, dtype):
    """With a scale per sample, none of them 1."""
    field, sampler = pfc.Field(conditional, dtype=dtype), pfc.Sampler(PLANS[name], pfc.CFG(2.0, (0.2, 0.8)))
    x0, y = pfc.randn(range(64), (37,)), torch.linspace(-1, 1, 64)
    scale = torch.linspace(1.5, 4.0, 64)

    def sample(index):
        return sampler(
            field, x0=x0[index], seeds=index, cond={"y": y[index]}, uncond={"y": torch.tensor(0.3)},
            guidance_scale=scale[index],
        )  # fmt: skip

    batch = sample([*range(64)])
    for i in (0, 1, 30, 63):
        assert torch.equal(sample([i])[0], batch[i])


@pytest.mark.parametrize("name", [*pfc.solvers(), "edm_heun-churn", "churn"])
def test_one_and_two_threads(name):
    sampler = pfc.Sampler(PLANS[name], pfc.CFG(3.0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                sampler(
                    conditional, x0=pfc.randn(range(5), (30_011,)), seeds=range(5),
                    cond={"y": torch.arange(5.0)}, uncond={"y": torch.zeros(5)},
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [None, 2.5])
def test_the_callers_loop_equals_the_call(name, dtype, state, scale):
    field = pfc.Field(conditional, dtype=dtype)
    sampler = pfc.Sampler(PLANS[name], None if scale is None else pfc.CFG(scale, (0.1, 0.5)))
    x0 = pfc.randn(range(3), (2, 35), dtype=state)
    y, null = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.1, 0.1])
    conditions = {} if scale is None else {"cond": {"y": y}, "uncond": {"y": null}}
    wanted = sampler(field, x0=x0, seeds=[4, 5, 6], **conditions)

    for stacked in (False, True):
        run = sampler.start(x0=x0, seeds=[4, 5, 6], field=field)
        for step in run:
            if scale is None:
                run.step(conditional(step.x, step.time))
                continue
            out = conditional(step.x, step.time, y)
            uncond = conditional(step.x, step.time, null) if step.branches == 2 else None
            if stacked and uncond is not None:
                run.step(torch.cat([out, uncond]))
            else:
                run.step(out, uncond)
        assert run.nfe == sampler.plan.nfe
        assert torch.equal(run.x, wanted)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_two_calls_equal_one_doubled_batch(name, dtype):
    field = pfc.Field(conditional, dtype=dtype)
    results = [
        pfc.Sampler(PLANS[name], pfc.CFG(lambda t: 1 + 3 * t), branches=branches)(
            field, x0=pfc.randn(range(3), (2, 35)), seeds=range(3), cond={"y": torch.arange(3.0)},
            uncond={"y": torch.zeros(())},
        )
        for branches in ("batch", "calls")
    ]  # fmt: skip
    assert torch.equal(*results)


@pytest.mark.parametrize("name", PLANS)
def test_gradients_on_and_off_give_the_same_bits(name):
    sampler = pfc.Sampler(PLANS[name], pfc.CFG(2.0, (0.2, 0.9)))
    results = [
        sampler(
            pfc.Field(conditional, dtype=dtype), x0=pfc.randn(range(3), (2, 35)), seeds=range(3),
            cond={"y": torch.arange(3.0)}, uncond={"y": torch.zeros(3)}, enable_grad=grad,
        )
        for dtype in (None, torch.bfloat16)
        for grad in (False, True)
    ]  # fmt: skip
    assert torch.equal(results[0], results[1].detach())
    assert torch.equal(results[2], results[3].detach())


def test_a_sampler_keeps_nothing():
    """The second of two equal calls is the first; a call in between leaves no trace."""
    sampler = pfc.Sampler(PLANS["ab2"])
    first = sampler(drift, shape=(9,), seeds=range(3))
    kept = first.clone()
    sampler(lambda x, t: 5 * x, shape=(9,), seeds=range(7))
    assert torch.equal(sampler(drift, shape=(9,), seeds=range(3)), kept)
    assert torch.equal(first, kept)
