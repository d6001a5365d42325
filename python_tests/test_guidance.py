"""Guidance: what is evaluated when, with which conditions, and what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import executor

PLAN = pfc.plan("euler", 10)


class Net:
    """x y + z, and a record of its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, y=None, **others):
        self.calls.append((len(x), None if y is None else y.clone(), others))
        return x * (1 if y is None else y.reshape(-1, *[1] * (x.dim() - 1))) - t.reshape(-1, 1)


def sample(net, guidance=None, plan=PLAN, branches="batch", **options):
    return pfc.Sampler(plan, guidance, branches=branches)(
        net, **({"shape": (4,), "seeds": range(3)} | options)
    )


def both(**options):
    return {
        "cond": {"y": torch.tensor([0.5, 1.0, 2.0])},
        "uncond": {"y": torch.tensor([0.1, 0.2, 0.3])},
    } | options


@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
def test_values(solver):
    """Against the NumPy executor with the guided field; no stage of any solver falls on an edge of the interval."""
    plan = pfc.plan(solver, 6)
    x0 = pfc.randn(range(3), (4,), dtype=torch.float64)
    conditions = both()
    scale = np.array([3.0, -1.0, 0.0])[:, None]

    def field(y):
        return lambda x, t: x * y.double().numpy()[:, None] - t

    def guided(x, t):
        c, u = field(conditions["cond"]["y"])(x, t), field(conditions["uncond"]["y"])(x, t)
        return u + scale * (c - u) if 0.23 <= t <= 0.61 else c

    wanted = executor.run(plan.to_dict(), guided, x0.numpy(), executor.plan_noise(range(3), (4,)))[-1]
    found = sample(Net(), pfc.CFG(scale[:, 0].tolist(), (0.23, 0.61)), plan, x0=x0, shape=None, **conditions)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_the_interval_is_closed_on_both_sides():
    net = Net()
    sample(net, pfc.CFG(2.0, (0.3, 0.7)), **both())
    assert [count for count, _, _ in net.calls] == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]
    net = Net()
    sample(net, pfc.CFG(2.0, (0.3, 0.3)), branches="calls", **both())
    assert [count for count, _, _ in net.calls] == [3] * 11


@pytest.mark.parametrize("branches", ["batch", "calls"])
@pytest.mark.parametrize("scale", [1, 1.0, [1.0, 1.0, 1.0], torch.ones(3), lambda t: 1.0])
def test_scale_one_never_evaluates_the_unconditional_branch(branches, scale):
    for options in ({"guidance": pfc.CFG(scale)}, {"guidance": pfc.CFG(5.0), "guidance_scale": scale}):
        net = Net()
        found = sample(net, branches=branches, **options, **both())
        assert [count for count, _, _ in net.calls] == [3] * 10
        assert torch.equal(found, sample(Net(), **both(uncond=None)))


def test_a_scale_of_the_call_overrides():
    for override in (3.0, [3.0] * 3, torch.tensor(3.0), np.float64(3.0), lambda t: 3.0):
        assert torch.equal(
            sample(Net(), pfc.CFG(2.0), guidance_scale=override, **both()), sample(Net(), pfc.CFG(3.0), **both())
        )  # fmt: skip


def test_a_scale_of_time_is_evaluated_at_the_plans_times():
    seen = []
    sample(Net(), pfc.CFG(lambda t: seen.append(t) or 2.0), **both())
    assert seen == list(PLAN.times[:-1])


def test_without_guidance_uncond_is_not_used():
    net = Net()
    sample(net, **both())
    assert [count for count, _, _ in net.calls] == [3] * 10
    assert torch.equal(net.calls[0][1], both()["cond"]["y"])


def test_one_doubled_batch_conditional_first():
    net = Net()
    sample(net, pfc.CFG(2.0), **both())
    conditions = both()
    assert torch.equal(net.calls[0][1], torch.cat([conditions["cond"]["y"], conditions["uncond"]["y"]]))
    assert len(net.calls) == 10


@pytest.mark.parametrize("null", [torch.tensor(0.25), torch.tensor([0.25]), torch.full((3,), 0.25)])
def test_a_null_condition_is_written_once(null):
    found = sample(Net(), pfc.CFG(2.0), **both(uncond={"y": null}))
    assert torch.equal(found, sample(Net(), pfc.CFG(2.0), **both(uncond={"y": torch.full((3,), 0.25)})))


def test_shared_is_not_doubled():
    net, table = Net(), torch.ones(3, 2)
    sample(net, pfc.CFG(2.0), shared={"pos": table, "mode": "fast"}, **both())
    for _, _, others in net.calls:
        assert others["pos"] is table
        assert others["mode"] == "fast"


def test_conditions_may_nest():
    seen = []

    def net(x, t, text):
        seen.append(text)
        return x * text["tokens"][0].mean((1, 2))[:, None]

    def condition(value):
        tokens = [torch.full((3, 5, 2), value), {"mask": torch.ones(3, 5, dtype=torch.bool)}]
        return {"text": {"tokens": tokens, "pooled": (torch.full((3, 7), value),), "kind": "clip", "size": 3}}

    found = sample(net, pfc.CFG(2.0), cond=condition(0.5), uncond=condition(0.1))
    assert seen[0]["tokens"][0].shape == (6, 5, 2)
    assert seen[0]["tokens"][1]["mask"].shape == (6, 5)
    assert isinstance(seen[0]["pooled"], tuple)
    assert seen[0]["pooled"][0].shape == (6, 7)
    assert (seen[0]["kind"], seen[0]["size"]) == ("clip", 3)
    assert torch.equal(
        found, sample(net, pfc.CFG(2.0), branches="calls", cond=condition(0.5), uncond=condition(0.1))
    )


@pytest.mark.parametrize(
    ("cond", "uncond", "why"),
    [
        ({"y": "cat"}, {"y": ""}, "'cat'"),
        ({"y": torch.tensor(1.0)}, {"y": torch.tensor(0.0)}, "does not begin with the batch size"),
        ({"y": torch.ones(5, 2)}, {"y": torch.zeros(5, 2)}, "does not begin with the batch size"),
        ({"y": torch.ones(3)}, {"y": None}, "Tensor"),
        ({"y": torch.ones(3)}, {"y": torch.ones(3, dtype=torch.float64)}, "differ in dtype"),
        ({"y": [torch.ones(3)]}, {"y": []}, "different lengths"),
        ({"y": {"a": 1}}, {"y": {"b": 1}}, "different keys"),
        ({"y": np.ones(3)}, {"y": np.zeros(3)}, "array"),
    ],
)
def test_what_cannot_be_doubled_is_called_twice_and_says_so(cond, uncond, why):
    seen = []

    def net(x, t, y):
        seen.append((len(x), y))
        return 0 * x

    with pytest.warns(pfc.PyflowcoreWarning, match="two calls") as caught:
        sample(net, pfc.CFG(2.0), cond=cond, uncond=uncond)
    assert why in str(caught[0].message)
    assert caught[0].filename == __file__
    assert len(seen) == 20
    assert {count for count, _ in seen} == {3}


def test_a_sample_with_scale_one_beside_others():
    """Mixed scales evaluate both branches; a scale of 1 then gives the conditional one to the last bit."""
    mixed = sample(Net(), pfc.CFG([1.0, 3.0, 1.0]), **both())
    alone = sample(Net(), pfc.CFG(1.0), **both())
    assert torch.equal(mixed[[0, 2]], alone[[0, 2]])


def test_guidance_without_conditions_says_that_it_has_no_effect():
    with pytest.warns(pfc.PyflowcoreWarning, match="no effect"):
        found = sample(Net(), pfc.CFG(2.0))
    assert torch.equal(found, sample(Net()))


def test_one_output_where_guidance_wants_two_says_so():
    run = pfc.Sampler(PLAN, pfc.CFG(2.0)).start(shape=(4,), seeds=range(3))
    step = run.next()
    assert step.branches == 2
    with pytest.warns(pfc.PyflowcoreWarning, match="taken as it is"):
        run.step(0 * step.x)


def test_denoised_is_the_guided_prediction():
    seen = []
    sample(
        lambda x, t, y: y.reshape(-1, 1).expand_as(x), pfc.CFG(3.0), callback=lambda *a: seen.append((a[3].clone(), a[4])),
        plan=pfc.plan("euler", grid=[0.0, 0.5, 1.0]), **both(),
    )  # fmt: skip
    y, null = both()["cond"]["y"], both()["uncond"]["y"]
    velocity = (null + 3 * (y - null))[:, None].expand(3, 4)
    x0 = pfc.randn(range(3), (4,))
    torch.testing.assert_close(seen[0][1], x0 + velocity)  # D = x + (1 - t) v at t = 0
    torch.testing.assert_close(seen[1][1], seen[0][0] + 0.5 * velocity)


def test_guidances_compare_and_hash_by_what_they_say():
    tensor = torch.tensor([1.0, 2.0])
    assert pfc.CFG(tensor) == pfc.CFG(tensor.clone()) != pfc.CFG(2 * tensor)
    assert (
        pfc.CFG(2.0, weights=[1.0, 2.0])
        == pfc.CFG(2.0, weights=(1.0, 2.0))
        != pfc.CFG(2.0, weights=(1.0, 3.0))
    )
    assert pfc.CFG(2.0) == pfc.CFG(2.0) != pfc.CFGZero(2.0)
    assert pfc.CFG(2.0) != 2.0 and pfc.CFG(tensor) != pfc.CFG(2.0)
    assert len({pfc.CFG(2.0, weights=[1.0, 2.0]), pfc.CFG(2.0, weights=(1.0, 2.0)), pfc.CFG(tensor)}) == 2
