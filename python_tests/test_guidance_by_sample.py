"""CFG-Zero*, APG, rescaling, autoguidance and several conditions in a Sampler: values, bits, gradients, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyflowcore as pfc
from reference import executor, guidance

PLAN = pfc.plan("heun", 5)
GUIDANCES = {
    "rescaled": (pfc.CFG(3.0).rescaled(0.7), {"phi": 0.7}),
    "star": (pfc.CFGZero(3.0), {"star": True}),
    "apg": (pfc.APG(3.0, eta=0.2, norm=0.5), {"eta": 0.2, "norm": 0.5}),
    "momentum": (pfc.APG(3.0, eta=0.2, norm=0.8, momentum=-0.5), {"eta": 0.2, "norm": 0.8, "beta": -0.5}),
    "all": (
        pfc.CFGZero(3.0, (0.15, 0.7)).projected(eta=0.3, norm=0.6).rescaled(0.4),
        {"star": True, "eta": 0.3, "norm": 0.6, "phi": 0.4},
    ),
}  # fmt: skip
SAMPLE = (3, 5)
Y, NULL = torch.tensor([0.5, 1.0, -2.0]), torch.tensor([0.1, 0.2, 0.3])


def field(x, t, y):
    """Elementwise, different for every condition, and exact for a bfloat16 input."""
    wide = (-1, *[1] * (x.dim() - 1))
    y = y.to(torch.float64).reshape(wide)
    t = t.to(torch.float64).reshape(wide)
    return (torch.sin(x.double() * (1 + y) + y) * (1.2 - t) - 0.3 * y).to(x.dtype)


def as_numpy(y):
    y = y.double().numpy().reshape(-1, *[1] * len(SAMPLE))
    return lambda x, t: np.sin(x * (1 + y) + y) * (1.2 - t) - 0.3 * y


def conditions(**options):
    return {"cond": {"y": Y}, "uncond": {"y": NULL}} | options


def sample(guided, net=field, plan=PLAN, branches="batch", **options):
    given = {"shape": SAMPLE, "seeds": range(3), "dtype": torch.float64} | conditions() | options
    return pfc.Sampler(plan, guided, branches=branches)(net, **given)


def by_formula(rule, scales, ys=(Y,), interval=(0.0, 1.0), zero_until=0.0, weak=None):
    """The guided field for the NumPy executor, with a momentum of its own."""
    momentum = {"m": np.zeros((3, *SAMPLE)) if "beta" in rule else None}

    def guided(x, t):
        if t < zero_until:
            return np.zeros_like(x)
        cs = [as_numpy(y)(x, t) for y in ys]
        if not interval[0] <= t <= interval[1]:
            return cs[0]
        u = as_numpy(NULL)(x, t) if weak is None else weak(x, t)
        out, momentum["m"] = guidance.batch(
            cs, u, scales, point=x, p=1.0, q=1 - t, **({} if momentum["m"] is None else momentum), **rule
        )
        return out

    return guided


def execute(plan, guided):
    x0 = pfc.randn(range(3), SAMPLE, dtype=torch.float64).numpy()
    return executor.run(plan.to_dict(), guided, x0, executor.plan_noise(range(3), SAMPLE))[-1]


@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
@pytest.mark.parametrize("name", GUIDANCES)
def test_values_on_every_solver(name, solver):
    plan = pfc.plan(solver, 6)
    guided, rule = GUIDANCES[name]
    scales = torch.tensor([3.0, 1.0, -0.5])
    right = execute(plan, by_formula(rule, [scales.numpy()], interval=guided.interval or (0.0, 1.0)))
    found = sample(guided, plan=plan, guidance_scale=scales)
    np.testing.assert_allclose(found.numpy(), right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
def test_zero_velocity_of_the_first_steps(solver):
    """Rows before zero_until are not evaluated; solvers of the data still predict it, from their point."""
    plan = pfc.plan(solver, 6)
    right = execute(plan, by_formula({"star": True}, [3.0], zero_until=0.4))
    calls = []

    def net(x, t, y):
        calls.append(float(t[0]))
        return field(x, t, y)

    found = sample(pfc.CFGZero(3.0, zero_until=0.4), net, plan)
    np.testing.assert_allclose(found.numpy(), right, rtol=1e-9, atol=1e-9)
    times = [row.t for row in plan.rows if row.evaluates]
    np.testing.assert_allclose(calls, [t for t in times if t >= 0.4], rtol=1e-12)
    assert len(calls) < plan.nfe

    run = pfc.Sampler(plan, pfc.CFGZero(3.0, zero_until=0.4)).start(
        shape=SAMPLE, seeds=range(3), dtype=torch.float64
    )
    for step in run:
        run.step(field(step.x, step.time, Y), field(step.x, step.time, NULL))
    assert run.nfe == len(calls)
    assert torch.equal(run.x, found)
    grad = sample(pfc.CFGZero(3.0, zero_until=0.4), plan=plan, enable_grad=True)
    assert torch.equal(grad, found)


def test_all_of_the_velocity_may_be_zero():
    calls = []
    x0 = pfc.randn(range(3), SAMPLE, dtype=torch.float64)
    found = sample(pfc.CFGZero(3.0, zero_until=2.0), lambda *a, **k: calls.append(1))
    assert not calls and torch.equal(found, x0)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m_sde"])
@pytest.mark.parametrize("name", ["rescaled", "star", "apg", "all"])
def test_several_conditions(name, solver):
    plan = pfc.plan(solver, 6)
    guided, rule = GUIDANCES[name]
    ys = (Y, torch.tensor([-0.3, 0.7, 0.2]), torch.tensor([1.5, -0.4, 0.9]))
    per_sample = torch.tensor([0.5, 2.0, -1.0])
    weighted = dataclasses.replace(guided, scale=2.0, weights=(1.5, per_sample, lambda t: 0.1 + t))
    found = [
        sample(weighted, plan=plan, cond=[{"y": y} for y in ys], branches=branches)
        for branches in ("batch", "calls")
    ]

    def guidance_at(x, t):
        scales = [3.0, 2.0 * per_sample.numpy(), 2.0 * (0.1 + t)]
        return by_formula(rule, scales, ys, guided.interval or (0.0, 1.0))(x, t)

    assert torch.equal(*found)
    np.testing.assert_allclose(found[0].numpy(), execute(plan, guidance_at), rtol=1e-9, atol=1e-9)


def test_several_conditions_without_anything_else():
    """Plain scales travel in combine_'s guidance; equal ones need no weights; w_1 = 1 and the rest 0 is one branch."""
    ys = [{"y": Y}, {"y": -Y}]
    for weights, scales in (((2.0, 0.5), (6.0, 1.5)), (None, (3.0, 3.0))):
        right = execute(PLAN, by_formula({}, scales, (Y, -Y)))
        for branches in ("batch", "calls"):
            found = sample(pfc.CFG(3.0, weights=weights), cond=ys, branches=branches)
            np.testing.assert_allclose(found.numpy(), right, rtol=1e-12, atol=1e-12)
    counts = []

    def net(x, t, y):
        counts.append(len(x))
        return field(x, t, y)

    alone = sample(pfc.CFG(1.0, weights=(1.0, 0.0)), net, cond=ys)
    assert set(counts) == {3} and torch.equal(alone, sample(None))


@pytest.mark.parametrize("rescaled", [False, True])
def test_several_conditions_in_the_callers_loop(rescaled):
    """The weights say how many there are; conditional outputs come stacked, with u beside them or below."""
    guided = pfc.CFG(2.0, (0.1, 0.9), weights=(1.5, 0.5)).rescaled(0.5 if rescaled else 0.0)
    wanted = sample(guided, cond=[{"y": Y}, {"y": -Y}])
    for stacked in (False, True):
        run = pfc.Sampler(PLAN, guided).start(shape=SAMPLE, seeds=range(3), dtype=torch.float64)
        for step in run:
            assert step.branches in (1, 3)
            outs = [field(step.x, step.time, y) for y in (Y, -Y)[: max(step.branches - 1, 1)]]
            u = field(step.x, step.time, NULL)
            if step.branches == 3:
                with pytest.raises(ValueError, match=r"out.*\[3, 3, 5\].*\[6, 3, 5\]"):
                    run.step(outs[0], u)
            if stacked and step.branches == 3:
                run.step(torch.cat([*outs, u]))
            else:
                run.step(torch.cat(outs), u)
        assert torch.equal(run.x, wanted)


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_step_does_nothing_but_its_two_kernels(name):
    """Nothing is allocated, copied or looked at: outputs that exist already reach the operators, and no other is called."""

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    seen = []
    run = pfc.Sampler(PLAN, GUIDANCES[name][0]).start(shape=SAMPLE, seeds=range(3))
    outs = torch.randn(2, 3, *SAMPLE).unbind()
    with Calls():
        for _ in run:
            run.step(outs[0], outs[1])
    guided = seen.count("pyflowcore::guide_")
    assert guided > 3
    assert seen.count("pyflowcore::combine_mixed_") == guided
    assert seen.count("pyflowcore::combine_") == PLAN.nfe - guided
    assert set(seen) - {"pyflowcore::combine_"} == {"pyflowcore::guide_", "pyflowcore::combine_mixed_"}


def test_a_weight_for_one_condition_multiplies_the_scale():
    assert torch.equal(sample(pfc.CFG(1.5, weights=(2.0,))), sample(pfc.CFG(3.0)))
    rescaled = sample(pfc.CFG(1.5, weights=(2.0,)).rescaled(0.5))
    assert torch.equal(rescaled, sample(pfc.CFG(3.0).rescaled(0.5)))


def test_callbacks_see_the_steps_of_zero_velocity():
    seen = []
    guided = pfc.CFGZero(3.0, zero_until=0.3)
    found = sample(guided, plan=pfc.plan("euler", 4), callback=lambda *a: seen.append((a[0], a[1], a[4])))
    assert [(step, nfe) for step, nfe, _ in seen] == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert seen[1][2] is None and seen[2][2] is not None
    assert found.shape == (3, *SAMPLE)


def test_a_guidance_prints_what_it_was_given():
    assert repr(pfc.CFG(4.0)) == "CFG(4.0)"
    said = repr(pfc.APG(7.5, (0.1, 0.9), norm=15.0).rescaled(0.5))
    assert said == "CFG(7.5, interval=(0.1, 0.9), eta=0.0, norm=15.0, phi=0.5)"


def test_autoguidance():
    """u from a second field: its own times, dtype, sign and condition."""
    seen = []

    def weak(x, t, y):
        seen.append((x.dtype, float(t[0]), y))
        return -0.5 * field(x, 1 - t / 1000, y)

    facts = pfc.Field(weak, sign=-1, time=lambda t: 1000 * (1 - t), dtype=torch.float64)
    for guided, rule in (
        (pfc.Autoguidance(facts, 2.0), {}),
        (pfc.Autoguidance(facts, 2.0).rescaled(0.5), {"phi": 0.5}),
    ):
        right = execute(PLAN, by_formula(rule, [2.0], weak=lambda x, t: 0.5 * as_numpy(Y)(x, t)))
        found = sample(guided, uncond=None)
        np.testing.assert_allclose(found.numpy(), right, rtol=1e-9, atol=1e-9)
    assert seen[0][0] == torch.float64 and seen[0][2] is Y
    np.testing.assert_allclose([t for _, t, _ in seen[:9]], [1000 * (1 - row.t) for row in PLAN.rows])
    right = execute(PLAN, by_formula({}, [2.0], weak=lambda x, t: 0.5 * as_numpy(NULL)(x, t)))
    np.testing.assert_allclose(sample(pfc.Autoguidance(facts, 2.0)).numpy(), right, rtol=1e-9, atol=1e-9)
    found = pfc.Sampler(PLAN, pfc.Autoguidance(pfc.Field(lambda x, t: 0 * x), 2.0))(
        lambda x, t: x, shape=SAMPLE, seeds=range(3)
    )
    assert torch.equal(found, pfc.Sampler(PLAN)(lambda x, t: 2 * x, shape=SAMPLE, seeds=range(3)))


def test_a_weak_field_of_another_dtype_and_a_scalar_time():
    shapes = []

    def weak(x, t, y):
        shapes.append((x.dtype, t.shape))
        return 0.5 * field(x, t, y)

    facts = pfc.Field(weak, dtype=torch.bfloat16, time_shape="scalar")
    found = sample(pfc.Autoguidance(facts, 2.0), uncond=None, dtype=torch.float32)
    assert set(shapes) == {(torch.bfloat16, torch.Size([]))}
    assert bool(torch.isfinite(found).all())


def test_a_scale_of_one_evaluates_one_branch_and_changes_nothing():
    for name, (guided, _) in GUIDANCES.items():
        counts = []

        def net(x, t, y, counts=counts):
            counts.append(len(x))
            return field(x, t, y)

        assert torch.equal(sample(guided, net, guidance_scale=1.0), sample(None)), name
        assert set(counts) == {3}
        mixed = sample(guided, guidance_scale=[1.0, 4.0, 1.0])
        assert torch.equal(mixed[[0, 2]], sample(None)[[0, 2]]), name


def test_what_asks_for_nothing_is_cfg():
    plain = sample(pfc.CFG(3.0))
    for guided in (pfc.CFG(3.0).rescaled(0.0), pfc.APG(3.0, eta=1.0), pfc.APG(3.0, eta=1.0, norm=1e6)):
        assert torch.equal(sample(guided), plain)


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("solver", ["euler", "heun", "unipc", "stochastic_heun"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_bits(name, solver, dtype):
    """Alone as in a batch, two calls as one, gradients on as off, the caller's loop as the call, twice as once."""
    plan, guided = pfc.plan(solver, 6), GUIDANCES[name][0]
    net = pfc.Field(field, dtype=dtype)
    scales = torch.linspace(1.5, 4.0, 7)
    y, null = torch.linspace(-1, 1, 7), torch.tensor(0.2)
    x0 = pfc.randn(range(7), (37,))

    def run(index, branches="batch", **options):
        return pfc.Sampler(plan, guided, branches=branches)(
            net, x0=x0[index], seeds=index, cond={"y": y[index]}, uncond={"y": null}, guidance_scale=scales[index],
            **options,
        )  # fmt: skip

    every = [*range(7)]
    batch = run(every)
    assert torch.equal(batch, run(every))
    assert torch.equal(batch, run(every, "calls"))
    assert torch.equal(batch, run(every, enable_grad=True))
    for i in (0, 3, 6):
        assert torch.equal(run([i])[0], batch[i])
    for stacked in (False, True):
        loop = pfc.Sampler(plan, guided).start(
            x0=x0, seeds=range(7), field=net, guidance_scale=scales, dtype=torch.float32
        )
        for step in loop:
            out, u = field(step.x, step.time, y), field(step.x, step.time, null.expand(7))
            loop.step(torch.cat([out, u]) if stacked and step.branches == 2 else out, None if stacked else u)
        assert torch.equal(loop.x, batch)


def test_one_and_two_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sample(GUIDANCES["all"][0], shape=(40_003,), dtype=torch.float32))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", GUIDANCES)
def test_gradients(name):
    """In x0, the condition and the scale, through the whole solve."""
    guided = GUIDANCES[name][0]
    x0 = torch.randn(
        2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    y = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    plan = pfc.plan("heun", 2)

    def solve(x0, y, scale):
        return pfc.Sampler(plan, guided)(
            field, x0=x0, cond={"y": y}, uncond={"y": torch.tensor(0.2, dtype=torch.float64)}, guidance_scale=scale,
            enable_grad=True,
        )  # fmt: skip

    assert torch.autograd.gradcheck(solve, (x0, y, scale))


def test_gradients_where_norms_are_zero():
    """u = 0, c = u, and nothing at all: gradients are finite."""
    for null in (0.0, 1.0):
        x0 = torch.zeros(2, 3, requires_grad=True)
        out = pfc.Sampler(PLAN, GUIDANCES["all"][0])(
            lambda x, t, y: x * y[:, None], x0=x0, cond={"y": torch.ones(2)}, uncond={"y": torch.tensor(null)},
            enable_grad=True,
        )  # fmt: skip
        out.sum().backward()
        assert bool(torch.isfinite(x0.grad).all())


@pytest.mark.parametrize("name", GUIDANCES)
def test_denoised_is_the_guided_prediction(name):
    """And looking at it does not move a momentum on."""
    seen = []
    plan = pfc.plan("euler", 4)
    found = sample(GUIDANCES[name][0], plan=plan, callback=lambda *a: seen.append((a[3].clone(), a[4])))
    assert torch.equal(found, sample(GUIDANCES[name][0], plan=plan))
    x = pfc.randn(range(3), SAMPLE, dtype=torch.float64)
    for i, (after, denoised) in enumerate(seen):
        t = plan.times[i]
        torch.testing.assert_close(denoised, x + (1 - t) * (after - x) / (plan.times[i + 1] - t))
        x = after


def test_a_plan_for_the_data_and_another_path():
    """APG acts on the data whatever is predicted."""
    x0 = pfc.randn(range(3), SAMPLE, dtype=torch.float64)
    y, null = Y.double().reshape(-1, 1, 1), NULL.double().reshape(-1, 1, 1)

    def data(x, y):
        return 0.3 * x + torch.cos(x + y)

    results = []
    for prediction in ("data", "velocity", "noise"):
        plan = pfc.plan("ddim", grid=[0.2, 0.5, 0.9], path="trigonometric", prediction=prediction)

        def net(x, t, y, prediction=prediction):
            t, y = t.reshape(-1, 1, 1), y.double().reshape(-1, 1, 1)
            alpha, sigma = torch.sin(torch.pi * t / 2), torch.cos(torch.pi * t / 2)
            d = data(x, y)
            noise = (x - alpha * d) / sigma
            return {
                "data": d, "noise": noise, "velocity": torch.pi / 2 * (sigma * d - alpha * noise),
            }[prediction]  # fmt: skip

        guided = pfc.APG(3.0, eta=0.1, norm=1.0, momentum=-0.3)
        results.append(
            pfc.Sampler(plan, guided)(
                pfc.Field(net, prediction, path="trigonometric"), x0=x0, cond={"y": Y}, uncond={"y": NULL}
            )
        )
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-9, atol=1e-9)
    assert y.shape == null.shape


def test_a_negative_sign_is_the_same():
    minus = pfc.Field(lambda x, t, y: -field(x, t, y), sign=-1)
    for guided, _ in GUIDANCES.values():
        torch.testing.assert_close(sample(guided, minus), sample(guided), rtol=1e-12, atol=1e-12)


def refuse(guided, plan=PLAN, **options):
    return lambda: sample(guided() if callable(guided) else guided, plan=plan, **options)


REFUSED = {
    "phi": (lambda: pfc.CFG(2.0).rescaled(1.5), ["phi", "1.5"]),
    "phi's type": (lambda: pfc.CFG(2.0).rescaled("much"), ["phi", "much"]),
    "norm": (lambda: pfc.APG(2.0, norm=0.0), ["norm", "0.0", "positive"]),
    "eta": (lambda: pfc.APG(2.0, eta=float("nan")), ["eta", "nan"]),
    "weak": (lambda: pfc.Autoguidance(field, 2.0), ["weak", "pfc.Field", "function"]),
    "weights": (lambda: pfc.CFG(2.0, weights=3.0), ["weights", "3.0"]),
    "weights of none": (lambda: pfc.CFG(2.0, weights=()), ["weights", "()"]),
    "momentum and star": (lambda: pfc.CFGZero(2.0).projected(momentum=-0.5), ["momentum", "CFG-Zero*"]),
    "weights and conditions": (refuse(pfc.CFG(2.0, weights=(1.0, 2.0))), ["weights", "2", "1 condition"]),
    "momentum of several": (
        refuse(pfc.APG(2.0, momentum=-0.5), cond=[{"y": Y}, {"y": -Y}]), ["momentum", "one condition"],
    ),
    "several without guidance": (refuse(None, cond=[{"y": Y}, {"y": -Y}]), ["cond", "2 conditions"]),
    "too many": (refuse(pfc.CFG(2.0), cond=[{"y": Y}] * 8), ["cond", "8", "7"]),
    "cond's type": (refuse(pfc.CFG(2.0), cond="cat"), ["cond", "dict", "str"]),
    "keys of the second": (refuse(pfc.CFG(2.0), cond=[{"y": Y}, {"z": Y}]), ["cond[1]", "y"]),
    "weak of another path": (
        refuse(pfc.Autoguidance(pfc.Field(field, path="vp"), 2.0)), ["weak", "path", "VP"],
    ),
    "weak of another prediction": (
        refuse(pfc.Autoguidance(pfc.Field(field, "data"), 2.0)), ["weak", "prediction", "'data'"],
    ),
    "momentum at t = 1": (
        refuse(pfc.APG(2.0, momentum=-0.5), pfc.plan("heun", 3, last="full")), ["momentum", "t = 1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_zero_until_is_for_velocities():
    plan = pfc.plan("ddim", grid=[0.1, 0.5, 0.9], prediction="noise")
    with pytest.raises(ValueError, match=r"zero_until.*'noise'"):
        pfc.Sampler(plan, pfc.CFGZero(2.0, zero_until=0.2))(
            pfc.Field(field, "noise"), x0=torch.zeros(3, *SAMPLE), **conditions()
        )


def test_apg_needs_times_that_determine_the_data():
    path = pfc.paths.Polynomial(2)
    plan = pfc.plan("euler", 3, path=path)
    net = pfc.Field(field, path=path)
    with pytest.raises(ValueError, match=r"t = 0\.0.*interval"):
        pfc.Sampler(plan, pfc.APG(2.0))(net, shape=SAMPLE, seeds=range(3), **conditions())
    found = pfc.Sampler(plan, pfc.APG(2.0, (0.1, 1.0)))(net, shape=SAMPLE, seeds=range(3), **conditions())
    assert bool(torch.isfinite(found).all())


@pytest.mark.filterwarnings("ignore:there are no CUDA graphs")
@pytest.mark.parametrize("name", GUIDANCES)
def test_a_captured_trajectory_begins_without_a_momentum(name):
    """Called twice, each time as the sampler's own call."""
    given = {"dtype": torch.float64} | conditions()
    captured = pfc.Sampler(PLAN, GUIDANCES[name][0]).capture(field, shape=SAMPLE, **given)
    for seeds, scale in ((range(3), 3.0), (range(5, 8), 2.0)):
        found = captured(seeds=seeds, guidance_scale=scale)
        assert torch.equal(found, sample(GUIDANCES[name][0], seeds=seeds, guidance_scale=scale))


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("solver", ["heun", "unipc", "dpmpp_2m_sde"])
def test_an_edit_that_changes_nothing_changes_no_bit(name, solver):
    """Rows in halves: each keeps its own rule, and rows of zero velocity stay such."""
    guided = GUIDANCES[name][0]
    if name == "star":
        guided = pfc.CFGZero(3.0, zero_until=0.3)
    plan = pfc.plan(solver, 6)
    for enable_grad in (False, True):
        edited = sample(guided, plan=plan, hook=lambda step, t, x: None, enable_grad=enable_grad)
        assert torch.equal(edited, sample(guided, plan=plan))
