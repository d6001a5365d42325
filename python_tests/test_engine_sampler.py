"""The engine of fused fields against the loop over the same field: every solver, path and prediction, guidance, starts."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref

import pytest
import torch

import pyflowcore as pfc
from pyflowcore.engine import prepared
from reference import catalogue
from reference.fused import fresh, hidden, small

F64 = torch.float64
# The loop's arithmetic is the operator's own, row by row: what differs is the network's input in memory, if anything.


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def both(sampler, field, **arguments):
    """(engine's, loop's), and that each ran in its own."""
    assert sampler.explain(field, **arguments).engine == "engine"
    assert sampler.explain(hidden(field), **arguments).engine == "loop"
    torch.manual_seed(7)
    one = sampler(field, **arguments)
    torch.manual_seed(7)
    return one, sampler(hidden(field), **arguments)


def agree(one, other):
    if isinstance(one, pfc.Trajectory):
        assert torch.equal(one.times, other.times)
        one, other = one.states, other.states
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    assert one.is_contiguous()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if pfc.cpu_isa() is not None:  # plain PyTorch promises no bits
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name", sorted(catalogue.FROM_ZERO.keys() | catalogue.EVERY.keys() - catalogue.STOCHASTIC.keys())
)
def test_every_solver(name):
    solver, options = catalogue.EVERY[name]
    sampler = pfc.Sampler(pfc.plan(solver, 5, **options))
    agree(*both(sampler, small(), x0=randn(3, 3), seeds=[4, 5, 6]))


def test_no_solver_is_left_out():
    assert {solver for solver, _ in catalogue.EVERY.values()} == set(pfc.solvers())


@pytest.mark.parametrize("path", ["linear", "trigonometric", "vp", "polynomial"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "v"])
def test_paths_and_predictions(path, prediction):
    grid = [0.1, 0.3, 0.5, 0.9]
    field = small(path=path, prediction=prediction, sign=-1)
    for solver in ("heun", "dpmpp_2m", "euler_maruyama"):
        sampler = pfc.Sampler(pfc.plan(solver, grid=grid, path=path, prediction=prediction))
        agree(*both(sampler, field, x0=randn(2, 3), seeds=[1, 2]))


@pytest.mark.parametrize("solver", ["euler", "heun", "edm_heun"])
def test_scaled_inputs(solver):
    """An EDM network's raw output: its input is scaled in every row."""
    field = small(path="ve", prediction=pfc.EDM(0.5))
    plan = pfc.plan(solver, 4, path="ve", prediction=pfc.EDM(0.5))
    assert any(row.in_scale != 1.0 for row in plan.facts)
    agree(*both(pfc.Sampler(plan), field, x0=randn(2, 3)))


@pytest.mark.parametrize("solver", ["euler", "rk4", "ab3", "unipc", "deis"])
def test_backwards(solver):
    sampler = pfc.Sampler(pfc.plan(solver, grid=[0.9, 0.6, 0.4, 0.1]))
    agree(*both(sampler, small(), x0=randn(2, 3)))


def test_along_another_path():
    plan = pfc.plan("heun", 3, path="vp", along="linear", grid=[0.1, 0.4, 0.7, 0.9])
    agree(*both(pfc.Sampler(plan), small(path="vp"), x0=randn(2, 3)))


def test_a_loaded_plan_on_a_path_of_functions():
    path = pfc.paths.custom(lambda t: t, lambda t: 1 - t, name="mine")
    plan = pfc.Plan.from_json(pfc.plan("heun", 3, path=path).to_json())
    sampler, field = pfc.Sampler(plan), small(path=path)
    for _ in range(2):
        agree(*both(sampler, field, x0=randn(2, 3)))


@pytest.mark.parametrize(
    "facts",
    [
        {"time": lambda t: 1000 * (1 - t)},
        {"time": lambda t: 999.4 * t, "round_time": True},
    ],
    ids=["map", "rounded"],
)
def test_the_networks_times(facts):
    agree(*both(pfc.Sampler(pfc.plan("heun", 4)), small(**facts), x0=randn(2, 3)))


SCALES = {
    "number": 2.5,
    "per sample": [2.0, 1.0, -0.5],
    "of t": lambda t: 1 + 3 * t,
    "of t, per sample": lambda t: torch.tensor([1.0, 1 + t, 2.0]),
    "one": 1.0,
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("interval", [None, (0.3, 0.7)])
def test_guidance(scale, interval):
    sampler = pfc.Sampler(pfc.plan("heun", 4), pfc.CFG(scale, interval))
    cond, null = {"c": randn(3, 2, seed=1)}, {"c": torch.zeros(1, 2, dtype=F64)}
    agree(*both(sampler, small(3, 2), x0=randn(3, 3), cond=cond, uncond=null))


@pytest.mark.parametrize("weights", [None, (1.5, -0.5), (lambda t: t, [0.1, 0.2, 0.3])])
def test_several_conditions(weights):
    sampler = pfc.Sampler(pfc.plan("dpmpp_2m", 4), pfc.CFG(2.0, (0.2, 0.8), weights=weights))
    cond = [{"c": randn(3, 2, seed=k)} for k in (1, 2)]
    agree(*both(sampler, small(3, 2), x0=randn(3, 3), cond=cond, uncond={"c": randn(3, 2, seed=3)}))


def test_an_overridden_scale_and_calls_one_by_one():
    field = small(3, 2)
    arguments = {"x0": randn(3, 3), "cond": {"c": randn(3, 2, seed=1)}, "uncond": {"c": randn(3, 2, seed=2)}}
    plan = pfc.plan("euler", 4)
    for scale in (3.0, 1.0, [1.0, 2.0, 3.0], lambda t: t):
        agree(*both(pfc.Sampler(plan, pfc.CFG(2.0)), field, guidance_scale=scale, **arguments))
        agree(
            *both(pfc.Sampler(plan, pfc.CFG(2.0), branches="calls"), field, guidance_scale=scale, **arguments)
        )


def test_a_velocity_taken_to_be_zero():
    sampler = pfc.Sampler(pfc.plan("heun", 5), pfc.CFG(2.0, zero_until=0.3))
    arguments = {"cond": {"c": randn(3, 2, seed=1)}, "uncond": {"c": randn(3, 2, seed=2)}}
    agree(*both(sampler, small(3, 2), x0=randn(3, 3), **arguments))


def test_conditions_without_guidance_and_shared_ones():
    sampler, field, c = pfc.Sampler(pfc.plan("heun", 4)), small(3, 2), randn(3, 2, seed=1)
    one, other = both(sampler, field, x0=randn(3, 3), cond={"c": c})
    agree(one, other)
    assert torch.equal(sampler(field, x0=randn(3, 3), shared={"c": c}), one)


@pytest.mark.parametrize("solver", ["euler", "heun", "unipc", "res", "euler_maruyama"])
def test_the_states_at_the_grid_points(solver):
    sampler = pfc.Sampler(pfc.plan(solver, 4))
    arguments = {"x0": randn(2, 3), "seeds": [1, 2]}
    one, other = both(sampler, small(), return_trajectory=True, **arguments)
    agree(one, other)
    assert torch.equal(one.states[0], arguments["x0"])
    agree(one.states[-1], sampler(small(), **arguments))


def test_starts():
    field, plan = small(), pfc.plan("euler_maruyama", 4)
    sampler = pfc.Sampler(plan)
    agree(*both(sampler, field, shape=(3,), seeds=[3, 4], dtype=F64))
    agree(*both(sampler, field, shape=(3,), batch=2, dtype=F64))  # seeds from torch's generator
    agree(*both(sampler, field, x0=randn(2, 3)))
    inside = pfc.Sampler(pfc.plan("dpmpp_2m", 4, grid=pfc.grids.uniform().partial(0.6)))
    agree(*both(inside, field, init=randn(2, 3), seeds=[3, 4]))
    shaped = small(6)
    agree(*both(sampler, shaped, shape=(2, 3), seeds=[3, 4], dtype=F64))
    agree(*both(sampler, shaped, x0=randn(2, 3, 4).transpose(1, 2)[:, :2], seeds=[3, 4]))
    agree(*both(sampler, field, x0=randn(0, 3)))


@pytest.mark.parametrize("solver", ["euler", "rk4", "dpmpp_2m", "unipc", "euler_maruyama"])
def test_float32_errs_as_the_loop_does(solver):
    """Against float64: at most twice the error of the loop, and a rounding."""
    field, sampler = small(3, 2), pfc.Sampler(pfc.plan(solver, 10), pfc.CFG(2.0))
    cond, null = {"c": randn(50, 2, seed=1)}, {"c": randn(50, 2, seed=2)}
    arguments = {"cond": cond, "uncond": null, "seeds": range(50)}
    exact = sampler(field, x0=randn(50, 3), **arguments)
    one, other = both(sampler, field, x0=randn(50, 3).float(), **arguments)
    assert one.dtype == torch.float32
    error, loops = (one - exact).abs().max(), (other - exact).abs().max()
    assert error <= 2 * loops + 1e-7 * exact.abs().max()


def test_what_is_given_is_not_written_and_samples_are_not_shared():
    sampler, field, x0 = pfc.Sampler(pfc.plan("heun", 2)), small(), randn(2, 3)
    before = x0.clone()
    one, other = sampler(field, x0=x0), sampler(field, x0=x0)
    assert torch.equal(x0, before)
    assert one.data_ptr() != other.data_ptr()
    one.zero_()
    assert torch.equal(sampler(field, x0=x0), other)


def test_a_sampler_without_gradient_gives_none():
    x0 = randn(2, 3).requires_grad_()
    assert not pfc.Sampler(pfc.plan("heun", 2))(small(), x0=x0).requires_grad


def test_what_is_prepared_is_used_again_and_knows_what_it_depends_on():
    field, plan, x0 = fresh(3, 2), pfc.plan("heun", 4), randn(2, 3)
    arguments = {"x0": x0, "cond": {"c": randn(2, 2, seed=1)}, "uncond": {"c": randn(2, 2, seed=2)}}
    samplers = [pfc.Sampler(plan, pfc.CFG(scale)) for scale in (2.0, 3.0)]
    for sampler in samplers * 2:
        agree(*both(sampler, field, **arguments))
    kept = prepared._kept[field]
    assert len(kept) == 2
    with torch.inference_mode():
        agree(*both(samplers[0], field, **arguments))
    assert len(prepared._kept[field]) == 2
    field.time = lambda t: 2 * t
    agree(*both(samplers[0], field, **arguments))
    field.sign = -1
    agree(*both(samplers[0], field, **arguments))
    agree(*both(pfc.Sampler(pfc.plan("heun", 5), pfc.CFG(2.0)), field, **arguments))
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_what_is_prepared_inside_inference_mode_serves_gradients():
    field, sampler, x0 = fresh(), pfc.Sampler(pfc.plan("heun", 2)), randn(2, 3)
    with torch.inference_mode():
        sampler(field, x0=x0)
    x0.requires_grad_()
    sampler(field, x0=x0, enable_grad=True).sum().backward()
    assert bool(x0.grad.isfinite().all())


def test_plans_that_come_and_go_are_not_kept_for_ever():
    field, x0 = fresh(), randn(1, 3)
    for steps in range(1, 40):
        pfc.Sampler(pfc.plan("euler", steps))(field, x0=x0)
    assert len(prepared._kept[field]) == prepared._MOST


def test_scales_of_samples_are_prepared_once_by_their_values():
    field, scale = fresh(3, 2), [2.0, 1.5]
    sampler = pfc.Sampler(pfc.plan("heun", 4), pfc.CFG(scale))
    given = {"x0": randn(2, 3), "cond": {"c": randn(2, 2, seed=1)}, "uncond": {"c": randn(2, 2, seed=2)}}
    for second, count in ((1.5, 1), (1.5, 1), (3.0, 2)):
        scale[1] = second
        agree(*both(sampler, field, **given))
        assert len(prepared._kept[field]) == count
    with pytest.raises(ValueError, match=r"must be a number or have shape \[1\]"):
        sampler(field, x0=randn(1, 3), cond={"c": randn(1, 2)}, uncond={"c": randn(1, 2)})


class Warp:
    """A time map whose power may change."""

    power = 1.0

    def __call__(self, t):
        return t**self.power


def test_a_time_map_is_asked_at_every_call():
    warp = Warp()
    field, sampler, x0 = fresh(time=warp), pfc.Sampler(pfc.plan("euler", 4)), randn(2, 3)
    before = sampler(field, x0=x0)
    warp.power = 3.0
    one, other = both(sampler, field, x0=x0)
    agree(one, other)
    assert float((one - before).abs().max()) > 1e-3


def test_a_time_map_that_is_learned_runs_in_the_loop():
    power = torch.tensor(1.3, dtype=F64)
    field, sampler, x0 = fresh(time=lambda t: t**power), pfc.Sampler(pfc.plan("heun", 3)), randn(2, 3)
    power.requires_grad_()
    assert sampler.explain(field, x0=x0).engine == "engine"
    said = sampler.explain(field, x0=x0, enable_grad=True)
    assert said.reasons == ("the field's time map has a gradient",)
    sampler(field, x0=x0, enable_grad=True).square().sum().backward()
    found = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            power += h
            found.append(float(sampler(field, x0=x0).square().sum()))
            power -= h
    assert float(power.grad) == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-6)


def test_what_is_prepared_keeps_nothing_alive():
    """A field that its own time map refers to: a cycle, which the collector has to be able to see; and a plan."""

    class Owner:
        def __init__(self):
            self.field = fresh(3, 2, time=self.warp)

        def warp(self, t):
            return 1.0 * t

    owner, plan, guidance = Owner(), pfc.plan("euler", 2), pfc.CFG(2.0)
    arguments = {"x0": randn(1, 3), "cond": {"c": randn(1, 2)}, "uncond": {"c": randn(1, 2, seed=1)}}
    pfc.Sampler(plan, guidance)(owner.field, **arguments)
    assert len(prepared._kept[owner.field]) == 1
    plans, guidances, owners = weakref.ref(plan), weakref.ref(guidance), weakref.ref(owner)
    del plan, guidance
    gc.collect()
    assert plans() is guidances() is None
    del owner
    gc.collect()
    assert owners() is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"known": torch.ones(2, 3)}, "mask is missing"),
        ({"mask": torch.ones(2, 3)}, "known is missing"),
        ({"known_noise": "bogus"}, "known_noise must be 'start' or 'fresh', got 'bogus'"),
    ],
)
def test_inpainting_that_is_not_complete_is_refused_in_both(arguments, said):
    for field in (small(), hidden(small())):
        with pytest.raises(ValueError, match=said):
            pfc.Sampler(pfc.plan("euler", 2))(field, x0=randn(2, 3), **arguments)


def test_threads_share_a_sampler_and_a_field():
    field, sampler = small(), pfc.Sampler(pfc.plan("euler_maruyama", 5))
    expected = [sampler(hidden(field), shape=(3,), seeds=[k, k + 1], dtype=F64) for k in range(8)]
    found = [None] * 8

    def work(k):
        for _ in range(5):
            found[k] = sampler(field, shape=(3,), seeds=[k, k + 1], dtype=F64)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"x0": randn(2, 4)}, ValueError, r"for samples of 3 elements, the state's have shape \[4\]"),
        ({"shape": (3,)}, ValueError, "seeds or batch must be given"),
        ({"x0": randn(2, 3), "shape": (3,)}, ValueError, "exactly one of x0, shape and init"),
        ({"x0": randn(2, 3), "guidance_scale": 2.0}, ValueError, "the sampler has no guidance"),
        ({"x0": randn(2, 3), "dtype": torch.float16}, TypeError, "must be float32 or float64"),
        ({"x0": randn(2, 3), "seeds": [1]}, ValueError, "seeds has 1 entries"),
    ],
)
def test_refusals_are_the_loops(arguments, error, said):
    with pytest.raises(error, match=said):
        pfc.Sampler(pfc.plan("euler_maruyama", 2))(small(), **arguments)


def test_a_field_of_another_path_is_refused():
    with pytest.raises(ValueError, match="path: the plan is for"):
        pfc.Sampler(pfc.plan("euler", 2))(small(path="vp"), x0=randn(2, 3))


@pytest.mark.parametrize("enable_grad", [False, True])
def test_a_compiled_function_traces_the_loop(enable_grad):
    field, sampler = small(), pfc.Sampler(pfc.plan("heun", 3))
    run = torch.compile(
        lambda x0: sampler(field, x0=x0, enable_grad=enable_grad), fullgraph=True, backend="eager"
    )
    x0 = randn(2, 3).requires_grad_()
    one, other = run(x0), sampler(field, x0=x0, enable_grad=enable_grad)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert one.requires_grad == other.requires_grad == enable_grad
    if enable_grad:
        learned = [x0, *field.module.parameters()]
        grads = [torch.autograd.grad(x.square().sum(), learned) for x in (one, other)]
        for grad, wanted in zip(*grads, strict=True):
            assert bool(wanted.any())
            torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


def test_a_precision_that_the_cpu_does_not_have():
    field = fresh(dtype=torch.float32, precision="tf32")
    with pytest.raises(ValueError, match="precision is 'tf32', which is for CUDA"):
        pfc.Sampler(pfc.plan("euler", 2))(field, x0=randn(2, 3).float())


def test_new_weights_after_a_refresh():
    field, sampler, x0 = fresh(), pfc.Sampler(pfc.plan("heun", 3)), randn(2, 3)
    before = sampler(field, x0=x0)
    with torch.no_grad():
        field.module.last.bias += 1.0
    assert torch.equal(sampler(field, x0=x0), before)
    field.refresh()
    after = sampler(field, x0=x0)
    assert float((after - before).abs().min()) > 0.1
    agree(after, sampler(hidden(field), x0=x0))
