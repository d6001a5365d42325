"""Noise that is given, by torch's generators or as tensors: the same table with slots in place of draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore.program import draws_as_slots, halves, program_of
from reference import catalogue, executor, stochastic
from reference.torch_fields import drift

GRID = [0.05, 0.2, 0.3, 0.55, 0.7, 0.95]
PLANS = {
    name: pfc.plan(solver, grid=GRID, **options) for name, (solver, options) in catalogue.STOCHASTIC.items()
}
PLANS |= {
    name: pfc.Plan.from_dict(stochastic.describe(name, np.linspace(0.1, 0.9, 6)))
    for name in stochastic.BUILDERS
}  # fmt: skip
SEEDS = [3, 4, 5]
X0 = pfc.randn(SEEDS, (2, 9))


def philox(plan, shape=(2, 9), dtype=torch.float32):
    """The noise that the kernel would have drawn."""
    return [pfc.randn(SEEDS, shape, stream=1, draw=n, dtype=dtype) for n in range(plan.draws)]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_the_kernels_own_noise_given_back_has_its_bits(name, grad, poison):
    """Every way to give it, alone and with a hook, whose halves share a draw."""
    plan = PLANS[name]
    sampler = pfc.Sampler(plan)
    draws = philox(plan)
    for hook in (None, lambda i, t, x: x.sin()):
        wanted = sampler(drift, x0=X0, seeds=SEEDS, hook=hook)
        for noise in (draws, torch.stack(draws), dict(enumerate(draws)), lambda n: draws[n]):
            found = sampler(drift, x0=X0, noise=noise, hook=hook, enable_grad=grad)
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", PLANS)
def test_given_noise_against_the_rows_in_float64(name):
    plan = PLANS[name]
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((plan.draws, 3, 4))
    x0 = pfc.randn(SEEDS, (4,), dtype=torch.float64)
    found = pfc.Sampler(plan)(drift, x0=x0, noise=torch.from_numpy(draws))
    wanted = executor.run(
        plan.to_dict(), lambda x, t: x * (t - 0.7) + 0.3 * t, x0.numpy(), lambda n: draws[n]
    )
    np.testing.assert_allclose(found.numpy(), wanted[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 9), (3,), (64,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PLANS)
def test_a_generator_draws_in_the_order_of_the_indices(name, dtype, shape):
    """torch.randn of the state's shape and dtype for each draw that the plan names, as a library would call it."""
    plan = PLANS[name]
    x0 = pfc.randn(SEEDS, shape, dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    used = sorted({draw.index for row in plan.rows for draw in (*row.s, *row.r)})
    draws = {n: torch.randn(x0.shape, generator=generator, dtype=dtype) for n in used}
    sampler = pfc.Sampler(plan)
    wanted = sampler(drift, x0=x0, noise=draws)
    for grad in (False, True):
        found = sampler(drift, x0=x0, noise=torch.Generator().manual_seed(7), enable_grad=grad)
        assert torch.equal(found, wanted)


def test_a_generator_makes_the_start_too():
    plan = pfc.plan("euler_ancestral", 4, path=pfc.paths.VE(5.0))
    field = pfc.Field(drift, path=plan.path)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 8, generator=generator)
    draws = {n: torch.randn(3, 8, generator=generator) for n in range(plan.draws)}
    sampler = pfc.Sampler(plan)
    found = sampler(field, shape=(8,), batch=3, noise=torch.Generator().manual_seed(1))
    assert torch.equal(found, sampler(field, x0=5.0 * start, noise=draws))
    assert torch.equal(found, sampler(field, shape=(8,), batch=3, noise={"start": start, **draws}))


def test_one_generator_a_sample():
    plan = pfc.plan("consistency", 4)
    sampler = pfc.Sampler(plan)

    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batch = sampler(drift, shape=(6, 4), batch=3, noise=generators([1, 2, 3]))
    for i, seed in enumerate([1, 2, 3]):
        assert torch.equal(sampler(drift, shape=(6, 4), batch=1, noise=generators([seed]))[0], batch[i])


def test_the_callers_loop():
    plan = PLANS["edm_heun-churn"]
    sampler = pfc.Sampler(plan)
    run = sampler.start(x0=X0, noise=torch.Generator().manual_seed(2))
    for step in run:
        run.step(drift(step.x, step.time))
    assert torch.equal(run.x, sampler(drift, x0=X0, noise=torch.Generator().manual_seed(2)))


def test_solvers_without_noise_take_a_generator_for_their_start():
    sampler = pfc.Sampler(pfc.plan("heun", 3))
    start = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    found = sampler(drift, shape=(5,), batch=2, noise=torch.Generator().manual_seed(3))
    assert torch.equal(found, sampler(drift, x0=start))


def test_gradients_reach_given_noise():
    plan = PLANS["dpmpp_2m_sde"]
    x0 = torch.ones(1, 2, dtype=torch.float64)
    draws = torch.randn(plan.draws, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda noise: pfc.Sampler(plan)(drift, x0=x0, noise=noise, enable_grad=True), (draws,)
    )


def test_the_memory_is_a_slot_for_each_draw_that_is_needed_at_one_time():
    for name, plan in PLANS.items():
        more = draws_as_slots(program_of(plan, 1)).slots - plan.slots
        assert more == (2 if "churn" in name and name != "churn" else 1), name
        assert draws_as_slots(halves(program_of(plan, 1), plan.times)).slots - plan.slots <= 2


def crowded(draws):
    """15 slots, and a row with that many draws."""
    slots = 15
    rows = [{"t": 0.01 * k, "step": 0, "store": k} for k in range(slots)]
    last = {"t": 0.5, "step": 0, "b": dict.fromkeys(range(slots), 0.1), "s": dict.fromkeys(range(draws), 1.0)}
    return pfc.Plan.from_dict(
        {
            "format": "pyflowcore.plan", "version": 1, "solver": "by hand", "path": "linear", "prediction": "velocity",
            "working": "velocity", "times": [0.0, 1.0], "slots": slots, "rows": [*rows, {**last, "completes_step": True}],
        }
    )  # fmt: skip


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"noise": 3}, TypeError, "noise must be a torch.Generator.*got int"),
        ({"noise": "seeds"}, TypeError, "noise must be .*got str"),
        ({"noise": [torch.zeros(3, 2, 9)]}, ValueError, "the plan's draw 1 is missing; given are 0"),
        ({"noise": {}}, ValueError, "the plan's draw 0 is missing; given are none"),
        ({"noise": {"first": X0}}, ValueError, "the key 'first', allowed are draw indices and 'start'"),
        ({"noise": torch.zeros(5, 3, 9)}, ValueError, r"noise\[0\] has shape \[3, 9\], the state has \[3, 2, 9\]"),
        ({"noise": torch.zeros(5)}, ValueError, r"noise must have shape \[draws, B, ...\], got \[5\]"),
        ({"noise": torch.zeros(5, 3, 2, 9).long()}, TypeError, r"noise\[0\] must be floating point, got torch.int64"),
        ({"noise": [X0, 1, X0, X0, X0]}, TypeError, r"noise\[1\] must be a tensor, got int"),
        ({"noise": lambda n: X0[:1]}, ValueError, r"noise\(0\) has shape \[1, 2, 9\], the state has \[3, 2, 9\]"),
        ({"noise": lambda n: None}, TypeError, r"noise\(0\) must be a tensor, got NoneType"),
        ({"noise": [GENERATOR] * 2}, ValueError, "noise has 2 generators, the batch has 3 samples"),
        ({"noise": GENERATOR, "seeds": SEEDS}, ValueError, "seeds and a generator are both given"),
        (
            {"noise": {"start": X0[:1]}, "x0": None, "shape": (2, 9), "batch": 3}, ValueError,
            r"noise\['start'\] has shape \[1, 2, 9\], the state has \[3, 2, 9\]",
        ),
    ],
)  # fmt: skip
def test_refused(arguments, error, words):
    sampler = pfc.Sampler(pfc.plan("dpmpp_2m_sde", 5))
    with pytest.raises(error, match=words):
        sampler(drift, **{"x0": X0, **arguments})


def test_more_draws_than_slots():
    sampler = pfc.Sampler(crowded(2))
    with pytest.raises(ValueError, match=r"beside the plan's 15, row 15 would need 17, allowed are 16"):
        sampler(drift, x0=torch.ones(1, 2), noise=GENERATOR)
    sampler(drift, x0=torch.ones(1, 2), seeds=[1])
    pfc.Sampler(crowded(1))(drift, x0=torch.ones(1, 2), noise=GENERATOR)
