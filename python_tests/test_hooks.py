"""Hooks that edit the state at grid points, on every solver: against the plan's rows in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, executor, stochastic
from reference.torch_fields import drift

GRID = [0.05, 0.2, 0.3, 0.55, 0.7, 0.95]
PLANS = {name: pfc.plan(solver, grid=GRID, **options) for name, (solver, options) in catalogue.EVERY.items()}
PLANS |= {
    name: pfc.Plan.from_dict(stochastic.describe(name, np.linspace(0.1, 0.9, 6)))
    for name in stochastic.BUILDERS
}
SEEDS = [3, 4, 5]


def by_hand(**options):
    """Rows whose point is not their state although they complete a step, and need a prediction that no slot keeps."""
    rows = [
        {"t": 0.1, "step": 0, "b_new": 0.3, "e_new": 0.2, "s": {0: 0.1}, "r": {0: 0.3, 1: 0.1}, "completes_step": True,
         "in_scale": 0.5, "c": 0.9},
        {"t": 0.4, "step": 1, "p": 0.2, "q": 0.7, "a": 0.8, "b_new": 0.3, "e_new": -0.4, "store": 0, "r": {1: 0.2}},
        {"t": 0.6, "step": 1, "p": -0.1, "b": {0: 0.5}, "e": {0: 0.2}, "e_new": 0.7, "completes_step": True, "in_scale": 2.0},
        {"t": 0.8, "step": 2, "p": 0.4, "b": {0: 0.1}, "b_new": 1.2, "completes_step": True},
    ]  # fmt: skip
    return pfc.Plan.from_dict(
        {
            "format": "pyflowcore.plan", "version": 1, "solver": "by hand", "path": "linear", "prediction": "velocity",
            "working": "velocity", "times": [0.1, 0.4, 0.8, 1.0], "slots": 1, "rows": rows, **options,
        }
    )  # fmt: skip


PLANS["by hand"] = by_hand()
PLANS["backwards"] = pfc.plan("unipc", grid=GRID[::-1], start="single")
# One of each kind of table: the diffusions, the variants and the starts of a solver differ in their numbers alone.
KINDS = [*sorted(pfc.solvers()), "edm_heun-churn", "backwards", *stochastic.BUILDERS]
PLANS |= {name: pfc.plan(name, grid=GRID) for name in pfc.solvers()}


def as_numpy(x, t):
    return x * (t - 0.7) + 0.3 * t


def change(step, x):
    """An edit that mixes nothing and is not linear."""
    return np.sin(x) * (1.1 + 0.1 * step) + 0.2


def run_reference(plan, x0, edit):
    draw = executor.plan_noise(SEEDS, x0.shape[1:])
    return executor.run(plan.to_dict(), as_numpy, x0.numpy(), draw, edit)


def in_place(step, t, x):
    x.sin_().mul_(1.1 + 0.1 * step).add_(0.2)


def returned(step, t, x):
    return x.sin() * (1.1 + 0.1 * step) + 0.2


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("hook", [in_place, returned])
@pytest.mark.parametrize("name", PLANS)
def test_a_hook_on_every_solver(name, hook, grad):
    plan = PLANS[name]
    x0 = pfc.randn(SEEDS, (7,), dtype=torch.float64)
    found = pfc.Sampler(plan)(drift, x0=x0, seeds=SEEDS, hook=hook, enable_grad=grad)
    wanted = run_reference(plan, x0, change)[-1]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-11, atol=1e-11)
    unedited = run_reference(plan, x0, lambda step, x: x)[-1]
    assert np.abs(wanted - unedited).max() > 1e-2


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_a_hook_that_changes_nothing_changes_no_bit(name, dtype, grad, poison):
    """Guided and not, with the state inside the doubled input and beside it."""
    field = pfc.Field(conditional, dtype=dtype)
    plan = PLANS[name]
    for guidance, arguments in (
        (None, {}),
        (pfc.CFG(2.0, (0.1, 0.6)), {"cond": {"y": torch.ones(3)}, "uncond": {"y": torch.zeros(3)}}),
    ):
        sampler = pfc.Sampler(plan, guidance)
        x0 = pfc.randn(SEEDS, (2, 19))
        plain = sampler(field, x0=x0, seeds=SEEDS, **arguments)
        edited = sampler(
            field, x0=x0, seeds=SEEDS, hook=lambda i, t, x: x.clone(), enable_grad=grad, **arguments
        )
        assert torch.equal(edited, plain)


def conditional(x, t, y=None):
    y = torch.zeros_like(t) if y is None else y
    wide = (-1, *[1] * (x.dim() - 1))
    return (x.float() * (t.float() - 0.7).reshape(wide) + y.float().reshape(wide)).to(x.dtype)


@pytest.mark.parametrize("name", [*KINDS, "by hand"])
@pytest.mark.parametrize("branches", ["batch", "calls"])
def test_the_field_sees_the_edited_state(name, branches):
    """Both halves of a doubled input, for a field that is shown a cast, scaled copy as well as for one that reads the state."""
    x0 = pfc.randn(SEEDS, (5,))
    for dtype in (None, torch.float64):
        results = []
        for hook in (in_place, returned):
            seen = []

            def net(x, t, y, seen=seen):
                if len(x) == 6:
                    assert torch.equal(x[:3], x[3:])
                seen.append(x[:3].clone())
                return conditional(x, t, y)

            x1 = pfc.Sampler(PLANS[name], pfc.CFG(2.0), branches=branches)(
                pfc.Field(net, dtype=dtype), x0=x0, seeds=SEEDS, hook=hook,
                cond={"y": torch.ones(3)}, uncond={"y": torch.zeros(3)},
            )  # fmt: skip
            results.append([*seen, x1])
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", [*KINDS, "by hand"])
def test_a_callers_loop_has_the_same_bits(name):
    sampler = pfc.Sampler(PLANS[name])
    x0 = pfc.randn(SEEDS, (7,))
    wanted = sampler(drift, x0=x0, seeds=SEEDS, hook=returned)
    run = sampler.start(x0=x0, seeds=SEEDS, hook=in_place)
    rows = []
    for step in run:
        rows.append(step.row)
        run.step(drift(step.x, step.time))
    assert torch.equal(run.x, wanted)
    assert rows == [i for i, row in enumerate(sampler.plan.rows) if row.evaluates]
    assert run.nfe == sampler.plan.nfe


def test_what_a_hook_is_told_and_what_others_see():
    plan = pfc.plan("heun", 4)
    told, seen = [], []

    def hook(step, t, x):
        told.append((step, t))
        return torch.full_like(x, float(step))

    result = pfc.Sampler(plan)(
        drift, x0=torch.ones(2, 3), hook=hook, callback=lambda i, nfe, t, x, d: seen.append(x.clone()),
        return_trajectory=True,
    )  # fmt: skip
    assert told == [(i, plan.times[i + 1]) for i in range(4)]
    for step in range(4):
        assert torch.equal(seen[step], torch.full((2, 3), float(step)))
        assert torch.equal(result.states[step + 1], seen[step])


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "ab3", "deis"])
def test_remembered_predictions_stay(name):
    """The state is replaced, the slots are not: the next step is the row's own sum with the old predictions."""
    plan = pfc.plan(name, grid=GRID)
    x0 = pfc.randn(SEEDS, (4,), dtype=torch.float64)

    def zero(step, x):
        return np.zeros_like(x) if step == 2 else x

    wanted = run_reference(plan, x0, zero)
    found = pfc.Sampler(plan)(
        drift, x0=x0, hook=lambda step, t, x: x.zero_() if step == 2 else None, return_trajectory=True
    )
    np.testing.assert_allclose(found.states[1:].numpy(), wanted, rtol=1e-12, atol=1e-13)


def test_gradients_flow_through_a_hook():
    plan = pfc.plan("heun", 3)
    x0 = torch.full((1, 2), 0.5, dtype=torch.float64, requires_grad=True)
    gain = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def solve(x0, gain):
        return pfc.Sampler(plan)(drift, x0=x0, hook=lambda i, t, x: x * gain, enable_grad=True)

    assert torch.autograd.gradcheck(solve, (x0, gain))


def test_a_hook_inside_a_callers_graph():
    """The trajectory's own memory stays out of it."""
    gain = torch.tensor(2.0, requires_grad=True)
    run = pfc.Sampler(pfc.plan("euler", 3)).start(x0=torch.ones(1, 2), hook=lambda i, t, x: x * gain)
    for step in run:
        run.step(step.x.clone() * gain)
    assert not run.x.requires_grad
    run = pfc.Sampler(pfc.plan("euler", 3)).start(x0=torch.ones(1, 2), hook=lambda i, t, x: x.mul_(gain))
    for step in run:
        run.step(step.x.clone() * gain)
    assert not run.x.requires_grad


@pytest.mark.parametrize(
    ("hook", "error", "words"),
    [
        (lambda i, t, x: 3.0, TypeError, "hook must return a tensor or None, got float"),
        (lambda i, t, x: x[:1], ValueError, r"hook returned torch\.float32 \[1, 3\].*the state is torch\.float32 \[2, 3\]"),
        (lambda i, t, x: x.long(), ValueError, r"hook returned torch\.int64"),
    ],
)  # fmt: skip
def test_refused(hook, error, words):
    for grad in (False, True):
        with pytest.raises(error, match=words):
            pfc.Sampler(pfc.plan("euler", 3))(drift, x0=torch.ones(2, 3), hook=hook, enable_grad=grad)


def test_a_plan_with_no_slot_left():
    rows = [{"t": 0.05 * k, "step": 0, "store": k} for k in range(16)]
    rows[-1] |= {"store": -1, "e_new": 0.5, "completes_step": True}
    rows = [*rows[:-1], {**rows[0], "t": 0.9, "store": 15}, rows[-1]]
    rows.append({"t": 1.0, "step": 1, "completes_step": True})
    plan = by_hand(rows=rows, slots=16, times=[0.0, 0.95, 1.0])
    with pytest.raises(ValueError, match="a slot more than the plan's 16"):
        pfc.Sampler(plan)(drift, x0=torch.ones(1, 2), hook=lambda *a: None)
