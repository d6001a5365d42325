"""solve: each sample by itself, its status and its counts, the ways to run the loop, and what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import adaptive_loop
from reference.odes import problems, van_der_pol

METHODS = ("bosh3", "dopri5", "tsit5", "dop853")
PARTS = ("status", "reached", "nfe", "accepted", "rejected")


def wave(x, t, w):
    """An elementwise field, larger or smaller by sample."""
    shape = (-1,) + (1,) * (x.dim() - 1)
    w = w.reshape(shape)
    return 3.0 * torch.sin(x * t.reshape(shape) * w) - 0.3 * w * x


def start(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(a, b, at=None):
    at = slice(None) if at is None else at
    assert torch.equal(a.x[:, at], b.x)
    for part in PARTS:
        assert torch.equal(getattr(a, part)[at], getattr(b, part)), part


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_alone_and_in_a_batch(method, dtype):
    """The same bits and the same steps, beside samples that take fewer and more of them."""
    for shape, times in (
        ((7, 2), [0.0, 1.0]),
        ((5, 3, 11), [0.0, 0.3, 0.31, 2.0]),
        ((2, 1030), [1.0, 0.5, 0.0]),
    ):
        x0, w = start(*shape, dtype=dtype), torch.linspace(0.2, 9.0, shape[0], dtype=dtype)
        whole = pfc.solve(wave, x0, times, method, 1e-4, 1e-5, {"w": w})
        assert whole.success.all() and len(set(whole.nfe.tolist())) > 1
        assert whole.x.shape == (len(times), *shape) and torch.equal(whole.x[0], x0)
        for i in range(shape[0]):
            same(
                whole,
                pfc.solve(wave, x0[i : i + 1], times, method, 1e-4, 1e-5, {"w": w[i : i + 1]}),
                slice(i, i + 1),
            )


@pytest.mark.parametrize("method", METHODS)
def test_tolerances_of_their_own(method):
    x0, w = start(3, 4), torch.linspace(1.0, 3.0, 3, dtype=torch.float64)
    rtol, atol = torch.tensor([1e-3, 1e-5, 1e-8]), torch.tensor([1e-4, 1e-6, 1e-7])
    whole = pfc.solve(wave, x0, [0.0, 1.0], method, rtol, atol, {"w": w})
    for i in range(3):
        one = pfc.solve(
            wave, x0[i : i + 1], [0.0, 1.0], method, float(rtol[i]), float(atol[i]), {"w": w[i : i + 1]}
        )
        same(whole, one, slice(i, i + 1))


@pytest.mark.parametrize("method", METHODS)
def test_the_evaluations_are_counted(method):
    calls = []

    def field(x, t):
        calls.append(1)
        return wave(x, t, torch.ones(1, dtype=x.dtype))

    found = pfc.solve(field, start(1, 5), [0.0, 1.0], method, 1e-6, 1e-6)
    assert found.rounds == len(calls) == int(found.nfe)
    each = {"bosh3": 3, "dopri5": 6, "tsit5": 6}.get(method)
    if each:
        assert int(found.nfe) == 2 + each * int(found.accepted + found.rejected)
    else:  # a rejected step has no evaluation at its end
        assert int(found.nfe) == 2 + 12 * int(found.accepted) + 11 * int(found.rejected)


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_that_is_not_finite_changes_no_other(method):
    """Sample 1 meets a field that is not finite beyond t = 0.4, sample 2 starts with a nan."""

    def field(x, t, bad, w):
        out = wave(x, t, w)
        return torch.where(((bad > 0) & (t > 0.4))[:, None], torch.nan, out)

    x0, w = start(4, 3), torch.linspace(0.5, 3.0, 4, dtype=torch.float64)
    x0[2, 1] = torch.nan
    bad = torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = pfc.solve(field, x0, [0.0, 0.2, 0.7, 1.0], method, 1e-5, 1e-5, {"bad": bad, "w": w})
    assert found.status.tolist() == [
        pfc.Status.SUCCESS,
        pfc.Status.NON_FINITE,
        pfc.Status.NON_FINITE,
        pfc.Status.SUCCESS,
    ]
    assert found.success.tolist() == [True, False, False, True]
    assert abs(float(found.reached[1]) - 0.4) < 1e-12 and float(found.reached[2]) == 0.0
    assert found.x[:, 1].isfinite().all() and found.nfe[2] == 1
    assert torch.equal(found.x[2, 1], found.x[3, 1]) and not torch.equal(found.x[1, 1], found.x[2, 1])
    good = torch.tensor([0, 3])
    same(
        found, pfc.solve(field, x0[good], found.t, method, 1e-5, 1e-5, {"bad": bad[good], "w": w[good]}), good
    )


def test_an_infinite_state_is_no_state():
    """A field that stays finite where the state overflows: the step is refused, not taken with an error of 0."""

    def field(x, t):
        return torch.full_like(x, 3e38)

    found = pfc.solve(field, torch.zeros(1, 2), [0.0, 10.0], atol=1e36, rtol=1e-3, max_nfe=2000)
    assert found.x.isfinite().all() and not found.success and 1.0 < float(found.reached) < 1.2


@pytest.mark.parametrize("method", METHODS)
def test_budget(method):
    problem = problems()["van der Pol"]
    free = pfc.solve(problem.field, problem.x0, [0.0, 2.5, 5.0], method, 1e-5, 1e-5, problem.cond)
    budget = int(free.nfe.sort().values[3])
    found = pfc.solve(
        problem.field, problem.x0, [0.0, 2.5, 5.0], method, 1e-5, 1e-5, problem.cond, max_nfe=budget
    )
    assert (found.nfe <= budget).all()
    done = free.nfe <= budget
    assert torch.equal(found.success, done) and 0 < int(done.sum()) < len(done)
    assert (found.status[~done] == pfc.Status.BUDGET).all() and (found.reached[~done] < 5.0).all()
    assert torch.equal(found.x[:, done], free.x[:, done])
    # Where it got to is a point of the same trajectory.
    i = int((~done).nonzero()[0])
    at = float(found.reached[i])
    cond = {"mu": problem.cond["mu"][i : i + 1]}
    right = pfc.solve(problem.field, problem.x0[i : i + 1], [0.0, at], "dop853", 1e-12, 1e-12, cond)
    assert (found.x[-1, i] - right.x[-1, 0]).abs().max() < 1e-3
    for few in (1, 2, 3):
        least = pfc.solve(problem.field, problem.x0, [0.0, 1.0], method, cond=problem.cond, max_nfe=few)
        assert (least.status == pfc.Status.BUDGET).all() and (least.nfe <= few).all()
        assert torch.equal(least.x[-1], problem.x0) and (least.reached == 0).all()


def test_underflow():
    """dx/dt = x^2 from 1 ends at t = 1; a finite field, so it is the tolerance that fails."""
    found = pfc.solve(
        lambda x, t: torch.clamp(x * x, max=1e300),
        torch.ones(1, 1, dtype=torch.float64),
        [0.0, 2.0],
        rtol=1e-6,
        atol=1e-6,
    )
    assert int(found.status) == pfc.Status.UNDERFLOW and abs(float(found.reached) - 1.0) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_backward_in_time(method):
    problem = problems()["mixture"]
    there = pfc.solve(problem.field, problem.x0, [0.0, 0.4, 0.9], method, 1e-8, 1e-8)
    back = pfc.solve(problem.field, there.x[-1], [0.9, 0.4, 0.0], method, 1e-8, 1e-8)
    assert back.success.all() and (back.reached == 0.0).all()
    assert (back.x[-1] - problem.x0).abs().max() < 1e-5 and (back.x[1] - there.x[1]).abs().max() < 1e-5
    # To the bit what the mirrored field does forward.
    mirror = pfc.solve(lambda x, t: -problem.field(x, -t), there.x[-1], [-0.9, -0.4, 0.0], method, 1e-8, 1e-8)
    assert torch.equal(back.x, mirror.x) and torch.equal(back.nfe, mirror.nfe)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("times", [[0.0, 5.0], [0.0, 1.0, 4.9, 5.0]])
def test_compact(method, times):
    """The same bits, at fewer evaluations of samples."""
    problem = problems()["van der Pol"]
    sizes = {False: [], True: []}

    def field(x, t, nested, compact):
        sizes[compact].append(len(x))
        return van_der_pol(x, t, nested["mu"])

    found = {}
    for compact in sizes:
        cond = {"nested": {"mu": problem.cond["mu"]}, "compact": compact}
        found[compact] = pfc.solve(field, problem.x0, times, method, 1e-5, 1e-5, cond, compact=compact)
    same(found[False], found[True])
    assert sum(sizes[True]) < 0.8 * sum(sizes[False]) and len(sizes[True]) == len(sizes[False])


def test_rounds():
    """Exactly so many evaluations; what is finished is what it would have been."""
    problem = problems()["van der Pol"]
    free = pfc.solve(problem.field, problem.x0, [0.0, 5.0], cond=problem.cond)
    enough = pfc.solve(problem.field, problem.x0, [0.0, 5.0], cond=problem.cond, rounds=free.rounds + 7)
    same(free, enough)
    assert enough.rounds == free.rounds + 7
    few = pfc.solve(problem.field, problem.x0, [0.0, 5.0], cond=problem.cond, rounds=int(free.nfe.min()))
    assert few.status.tolist() == [pfc.Status.SUCCESS] + [pfc.Status.UNFINISHED] * 5
    assert (
        torch.equal(few.x[-1, 0], free.x[-1, 0])
        and (few.reached[1:] < 5.0).all()
        and (few.reached[1:] > 0).all()
    )


@pytest.mark.parametrize("rounds", [None, 40])
def test_nothing_looks_at_the_samples(rounds):
    """With rounds, no value is looked at; without, the number of running samples alone (memory that is the host's here)."""
    from test_no_sync import unseen

    x0 = unseen(start(3, 4))
    found = pfc.solve(
        lambda x, t: -x * t[:, None], x0, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), rtol=1e-4, rounds=rounds,
        cond={},
    )  # fmt: skip
    assert found.x.shape == (3, 3, 4)


def test_a_device_is_asked_once_in_two_steps():
    """The host's looks at a device, whose number it gets from the look before."""
    running = torch.full((1,), 5)
    watch = adaptive_loop._Watch(running, 12)
    watch._value = None  # as on a device
    seen = []
    for rounds in range(1, 61):
        if rounds == 30:
            running.zero_()
        seen.append(watch.look(rounds))
    assert [i + 1 for i, value in enumerate(seen) if value is not None] == [24, 36, 48, 60]
    assert watch.looks == 4 and [value for value in seen if value is not None] == [5, 5, 0, 0]


def test_the_field_reads_what_it_asked_for():
    seen = []

    def net(x, t):
        seen.append((x.dtype, t.dtype, float(t[0])))
        return -x

    x0 = start(2, 3, dtype=torch.float32)
    pfc.solve(pfc.Field(net, dtype=torch.bfloat16, time=lambda t: 1000 * (1 - t)), x0, [0.0, 1.0])
    assert {part[:2] for part in seen} == {(torch.bfloat16, torch.float32)} and seen[0][2] == 1000.0
    seen.clear()
    flipped = pfc.solve(pfc.Field(lambda x, t: -net(x, t), sign=-1), x0, [0.0, 1.0])
    assert torch.equal(flipped.x, pfc.solve(net, x0, [0.0, 1.0]).x) and seen[0][1] == torch.float32
    one = pfc.solve(
        pfc.Field(lambda x, t: x * t, time_shape="scalar"), x0[:1], [0.0, 1.0], rtol=1e-6, atol=1e-6
    )
    assert torch.allclose(one.x[-1], x0[:1] * torch.e**0.5, rtol=1e-5)


def test_elements_that_come_along():
    """A last element without part in the error: the steps are those of the rest alone."""
    x0 = start(3, 4)
    wide = torch.cat([x0, torch.zeros(3, 1, dtype=torch.float64)], 1)

    def both(x, t):
        return torch.cat([-x[:, :4] * t[:, None], 1e6 * torch.sin(40 * t)[:, None]], 1)

    for method in METHODS:
        alone = pfc.solve(lambda x, t: -x * t[:, None], x0, [0.0, 1.0], method)
        found = pfc.solve(both, wide, [0.0, 1.0], method, norm_elements=4)
        assert torch.equal(found.x[..., :4], alone.x) and torch.equal(found.nfe, alone.nfe)


def test_shapes_without_elements():
    for shape in ((0, 3), (2, 0), (0,)):
        found = pfc.solve(lambda x, t: -x, torch.zeros(shape), [0.0, 0.5, 1.0])
        assert found.x.shape == (3, *shape) and found.status.shape == shape[:1]
    assert pfc.solve(lambda x, t: -x, torch.ones(4), [0.0, 1.0]).x.shape == (2, 4)


def test_tight_tolerances_of_float32_warn():
    with pytest.warns(pfc.PyflowcoreWarning, match="rtol is 1e-08, below what float32 resolves"):
        pfc.solve(lambda x, t: -x, torch.ones(1, 1), [0.0, 1.0], rtol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pfc.solve(lambda x, t: -x, torch.ones(1, 1), [0.0, 1.0], rtol=1e-6)


def velocity(x, t):
    return -x


X = torch.ones(2, 3)


@pytest.mark.parametrize("change, error, message", [
    ({"method": "rk45"}, ValueError, "method: unknown name 'rk45', allowed are bosh3, dopri5, tsit5, dop853"),
    ({"x0": [1.0]}, TypeError, "x0 must be a tensor, got list"),
    ({"x0": X.half()}, TypeError, "x0 must be float32 or float64, got torch.float16"),
    ({"x0": torch.tensor(1.0)}, ValueError, "x0 must have a batch dimension"),
    ({"t": [0.0]}, ValueError, "t must be 1-D with at least two times"),
    ({"t": [0.0, 1.0, 0.5]}, ValueError, "t must be finite and increase, or decrease"),
    ({"t": [0.0, float("nan")]}, ValueError, "t must be finite"),
    ({"t": "ab"}, TypeError, "t must be a 1-D tensor or a sequence of numbers"),
    ({"rtol": -1.0}, ValueError, "rtol must be at least 0 and finite, got -1.0"),
    ({"atol": 0.0}, ValueError, "atol must be positive and finite"),
    ({"atol": torch.ones(3)}, ValueError, r"atol must be a number or have shape \[2\], got \[3\]"),
    ({"rtol": "1"}, TypeError, r"rtol must be a number or a tensor \[B\], got str"),
    ({"max_nfe": 0}, ValueError, r"max_nfe must be a positive integer below 2\*\*62, got 0"),
    ({"max_nfe": 2**70}, ValueError, "max_nfe must be a positive integer below"),
    ({"first_step": "a"}, TypeError, "first_step must be a number or None, got str"),
    ({"first_step": True}, TypeError, "first_step must be a number or None, got bool"),
    ({"norm_elements": 1.5}, TypeError, "norm_elements must be an integer or None, got 1.5"),
    ({"norm_elements": True}, TypeError, "norm_elements must be an integer or None, got True"),
    ({"rounds": 2.5}, ValueError, "rounds must be a positive integer or None, got 2.5"),
    ({"rounds": 5, "compact": True}, ValueError, "compact=True needs to know"),
    ({"rounds": 5, "enable_grad": True}, ValueError, "enable_grad=True needs to know"),
    ({"first_step": 0.0}, ValueError, "first_step must be a positive number"),
    ({"norm_elements": 4}, ValueError, r"norm_elements must lie in 1..3, got 4"),
    ({"cond": [1]}, TypeError, "cond must be a dict"),
    ({"field": pfc.Field(velocity, prediction="data")}, ValueError, "field predicts 'data', and a solve integrates"),
    ({"field": pfc.Field(velocity, time_shape="scalar")}, ValueError, "field takes one time for the whole batch"),
    ({"field": pfc.Field(velocity, time_dtype=torch.int64)}, ValueError, "field's time_dtype is torch.int64"),
    ({"field": lambda x, t: x[:1]}, RuntimeError, r"the field returned shape \[1, 3\] at points of shape \[2, 3\]"),
    ({"field": pfc.Field(velocity, time=lambda t: t[0])}, ValueError, "field's time must keep the shape"),
])  # fmt: skip
def test_refusals(change, error, message):
    given = {"field": velocity, "x0": X, "t": [0.0, 1.0], **change}
    with pytest.raises(error, match=message):
        pfc.solve(given.pop("field"), given.pop("x0"), given.pop("t"), **given)
