"""Rows: built plans and hand-written ones, prologues, named and shared noise draws, against the NumPy executor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, executor, fields, stochastic
from reference import paths as reference
from reference.torch_fields import as_net

GRID = reference.lambda_grid("linear", 12)
SEEDS = [3, -7, 2**63 + 11]
MIXTURE = fields.Mixture("linear", [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])


def sampled(plan, x0, seeds=None, **options):
    return pfc.Sampler(plan)(as_net(MIXTURE.of("velocity")), x0=x0, seeds=seeds, **options)


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("name", catalogue.EVERY)
@pytest.mark.parametrize("prediction", fields.PREDICTIONS)
def test_built_plans(path, name, prediction):
    solver, options = catalogue.EVERY[name]
    exact = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6]).of(prediction)
    grid = np.array([0.03, 0.1, 0.3, 0.35, 0.8, 0.9])
    plan = pfc.plan(solver, grid=grid, path=path, prediction=prediction, **options)
    x0 = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 5)))
    states = executor.run(plan.to_dict(), exact, x0.numpy(), executor.plan_noise(SEEDS[:2], (5,)))
    found = pfc.Sampler(plan)(
        pfc.Field(as_net(exact), prediction, path), x0=x0, seeds=SEEDS[:2], return_trajectory=True
    )
    np.testing.assert_array_equal(found.times.numpy(), plan.times)
    np.testing.assert_allclose(found.states.numpy(), [x0.numpy(), *states], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(stochastic.BUILDERS))
def test_stochastic_tables(name):
    plan = pfc.Plan.from_dict(stochastic.describe(name, GRID))
    x0 = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 2, 3)))
    draw = executor.plan_noise(SEEDS, (2, 3))
    states = executor.run(plan.to_dict(), MIXTURE.of("velocity"), x0.numpy(), draw)
    found = sampled(plan, x0, SEEDS, return_trajectory=True)
    np.testing.assert_allclose(found.states.numpy(), [x0.numpy(), *states], rtol=1e-12, atol=1e-12)
    assert torch.equal(sampled(plan, x0, SEEDS), found.states[-1])


@pytest.mark.parametrize("name", sorted(stochastic.BUILDERS))
def test_stochastic_tables_in_float32(name):
    plan = pfc.Plan.from_dict(stochastic.describe(name, GRID))
    x0 = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 7)))
    exact = executor.run(
        plan.to_dict(), MIXTURE.of("velocity"), x0.float().double().numpy(), executor.plan_noise(SEEDS, (7,))
    )[-1]
    found = sampled(plan, x0.float(), SEEDS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", sorted(stochastic.BUILDERS))
def test_mean_and_variance_of_gaussian_data(name):
    """Everything is affine there, so following coefficients gives the exact moments; 4 standard errors are allowed."""
    mean, std, count = 0.8, 0.5, 40_000
    grid = reference.lambda_grid("linear", 8)
    plan = pfc.Plan.from_dict(stochastic.describe(name, grid))
    exact_mean, exact_variance = stochastic.gaussian_moments(plan.to_dict(), mean, std, grid[0])
    start = grid[0] * mean + np.sqrt((1 - grid[0]) ** 2 + (grid[0] * std) ** 2) * pfc.randn(
        range(count), (1,), dtype=torch.float64
    )
    net = as_net(fields.gaussian("linear", mean, std).of("velocity"))
    found = pfc.Sampler(plan)(net, x0=start, seeds=range(count)).numpy()
    assert abs(found.mean() - exact_mean) < 4 * np.sqrt(exact_variance / count)
    assert abs(found.var() - exact_variance) < 4 * exact_variance * np.sqrt(2 / count)


def test_a_shared_draw_is_one_noise():
    """x takes draw 0 in the first row and gives it back in the last, while y saw it and draw 5 as well."""
    rows = [
        {"t": 0.0, "step": 0, "s": {"0": 2.0}, "r": {"5": 1.0}, "e_new": 0.5},
        {"t": 0.5, "step": 0, "completes_step": True, "p": 1.0, "q": 0.0, "b_new": 1.0, "s": {"0": -2.0, "5": -1.0}},
    ]  # fmt: skip
    plan = plan_of(rows, [0.0, 1.0])
    assert plan.draws == 6
    x0 = torch.zeros(2, 9, dtype=torch.float64)
    found = pfc.Sampler(plan)(lambda x, t: torch.full_like(x, 3.0), x0=x0, seeds=[1, 2])
    # D of the second row is its point y = x + 0.5 * 3 + xi_5 with x = 2 xi_0: so x = 2 xi_0 + y - 2 xi_0 - xi_5.
    xi = pfc.randn([1, 2], (9,), dtype=torch.float64, stream=1, draw=0)
    np.testing.assert_allclose(found.numpy(), (2 * xi + 1.5).numpy(), atol=1e-14)


def plan_of(rows, times, slots=0, **options):
    return pfc.Plan.from_dict(
        {
            "format": "pyflowcore.plan", "version": 1, "solver": "by hand", "path": "linear", "prediction": "velocity",
            "working": "velocity", "times": list(times), "slots": slots, "rows": rows,
        } | options
    )  # fmt: skip


def test_rows_without_evaluations():
    """A prologue, a row in between, an epilogue; the states at the grid points are those after each completed step."""
    rows = [
        {"evaluates": False, "t": 0.0, "step": 0, "a": 3.0},
        {"t": 0.0, "step": 0, "completes_step": True, "b_new": 1.0},
        {"evaluates": False, "t": 0.5, "step": 1, "a": 10.0},
        {"t": 0.5, "step": 1, "b_new": 1.0},
        {"evaluates": False, "t": 1.0, "step": 1, "a": 2.0, "completes_step": True},
    ]
    plan = plan_of(rows, [0.0, 0.5, 1.0])
    calls = []
    found = pfc.Sampler(plan)(
        lambda x, t: x, x0=torch.ones(1, 1), return_trajectory=True,
        callback=lambda step, nfe, t, x, denoised: calls.append((step, nfe, t, x.item(), denoised is not None)),
    )  # fmt: skip
    assert plan.nfe == 2
    assert found.states.flatten().tolist() == [1.0, 6.0, 240.0]
    assert calls == [(0, 1, 0.5, 6.0, True), (1, 2, 1.0, 240.0, True)]
    run = pfc.Sampler(plan).start(x0=torch.ones(1, 1))
    for step in run:
        run.step(step.x)
    assert run.x.item() == 240.0


def test_a_plan_that_never_evaluates():
    plan = plan_of([{"evaluates": False, "t": 0.0, "step": 0, "a": 0.5, "completes_step": True}], [0.0, 1.0])
    run = pfc.Sampler(plan).start(x0=torch.ones(2, 3))
    assert run.done
    assert torch.equal(run.x, torch.full((2, 3), 0.5))
    with pytest.raises(RuntimeError, match="done"):
        run.next()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_input_scale_is_seen_by_the_field_alone(dtype):
    rows = [
        {"t": 0.0, "step": 0, "b_new": 1.0, "in_scale": 0.5, "completes_step": True},
        {"t": 0.5, "step": 1, "p": 1.0, "b_new": 1.0, "completes_step": True},
    ]
    seen = []

    def net(x, t):
        seen.append(x.double().clone())
        return 0 * x + 2

    found = pfc.Sampler(plan_of(rows, [0.0, 0.5, 1.0]))(pfc.Field(net, dtype=dtype), x0=torch.ones(1, 3))
    assert [value[0, 0].item() for value in seen] == [1.0, 1.5]
    assert found.tolist() == [[8.0] * 3]  # 1 + 2 = 3, then 3 + (3 + 2)


def test_sixteen_slots():
    """The last row reads 16 remembered predictions."""
    steps = 17
    rows = [
        {"t": i / steps, "step": i, "store": i, "completes_step": True} for i in range(16)
    ]  # the state stands still
    weights = {str(k): float(k + 1) for k in range(16)}
    rows.append({"t": 16 / steps, "step": 16, "b": weights, "b_new": 100.0, "completes_step": True})
    plan = plan_of(rows, np.linspace(0, 1, steps + 1), slots=16)
    x0 = torch.zeros(1, 5, dtype=torch.float64)
    found = pfc.Sampler(plan)(lambda x, t: t[:, None] + 0 * x, x0=x0)
    np.testing.assert_allclose(found.numpy(), sum((k + 1) * k for k in range(16)) / steps + 100 * 16 / steps)


def test_a_minus_one_is_used_where_a_rounds():
    """x + (a - 1) x for |a - 1| below the resolution of a: what a float32 state needs, seen in float64."""
    rows = [
        {"t": 0.0, "step": 0, "q": 0.0, "a_minus_1": 1e-17, "completes_step": True},
        {"t": 0.5, "step": 1, "a": -1.0, "b_new": 1.0, "completes_step": True},
    ]
    plan = plan_of(rows, [0.0, 0.5, 1.0])
    assert plan.table[0, 7] == 1e-17
    assert plan_of(rows, [0.0, 0.5, 1.0]) == pfc.Plan.from_json(plan.to_json())
