"""What a field, a caller or a callback might do to a trajectory's own buffers: refused, never silently wrong."""

from __future__ import annotations

import collections
import copy
import pickle

import pytest
import torch

import pyflowcore as pfc

PLAN = pfc.plan("euler", 4)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_backward_through_a_callers_loop_fails_rather_than_being_wrong(solver):
    net = torch.nn.Linear(3, 3)
    run = pfc.Sampler(pfc.plan(solver, 4)).start(x0=torch.randn(4, 3))
    loss = torch.zeros(())
    for step in run:
        out = net(step.x)
        loss = loss + out.square().sum()
        run.step(out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cloned_inputs_give_the_right_gradient():
    net, x0 = torch.nn.Linear(3, 3), torch.randn(4, 3)
    run = pfc.Sampler(PLAN).start(x0=x0)
    loss, inputs = torch.zeros(()), []
    for step in run:
        inputs.append(step.x.clone())
        out = net(inputs[-1])
        loss = loss + out.square().sum()
        run.step(out)
    loss.backward()
    found = net.weight.grad.clone()
    net.weight.grad = None
    sum(net(x).square().sum() for x in inputs).backward()
    torch.testing.assert_close(found, net.weight.grad)


def test_combine_in_place_counts_as_a_write_and_refuses_a_gradient():
    x = torch.zeros(2, 3)
    before = x._version
    pfc.ops.combine_(x, PLAN.table, 0, out=torch.ones(2, 3))
    assert x._version > before
    with pytest.raises(ValueError, match="x is written and must not require a gradient"):
        pfc.ops.combine_(torch.zeros(2, 3, requires_grad=True), PLAN.table, 0, out=torch.ones(2, 3))


@pytest.mark.parametrize("enable_grad", [False, True])
def test_a_field_that_writes_into_x(enable_grad):
    x0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match="wrote into its input x"):
        pfc.Sampler(PLAN)(lambda x, t: x.mul_(2), x0=x0, enable_grad=enable_grad)
    assert torch.equal(x0, torch.ones(2, 3))


@pytest.mark.parametrize("shape", ["batch", "scalar"])
def test_a_field_that_writes_into_its_time(shape):
    def net(x, t):
        t.mul_(1000)
        return x

    field = pfc.Field(net, time_shape=shape)
    with pytest.raises((ValueError, RuntimeError), match=r"wrote into its input time|single memory location"):
        pfc.Sampler(PLAN)(field, x0=torch.ones(1, 3))
    with pytest.raises((ValueError, RuntimeError), match=r"wrote into its input time|single memory location"):
        pfc.Sampler(PLAN)(field, x0=torch.ones(4, 3))


def test_times_do_not_grow_with_the_batch():
    run = pfc.Sampler(pfc.plan("euler", 100)).start(x0=torch.zeros(1000, 2))
    assert run.next().time.untyped_storage().nbytes() <= 100 * 8


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_callback_that_writes_into_x(dtype):
    field = pfc.Field(lambda x, t: -x, dtype=dtype)
    with pytest.raises(ValueError, match="callback wrote into x"):
        pfc.Sampler(PLAN)(field, x0=torch.ones(2, 3), callback=lambda step, nfe, t, x, d: x.fill_(1.0))


def test_two_calls_that_return_the_same_memory():
    buffer = torch.zeros(2, 3)

    def net(x, t, y):
        return buffer.copy_(y * x)

    sampler = pfc.Sampler(PLAN, pfc.CFG(2.0), branches="calls")
    with pytest.raises(ValueError, match="same memory"):
        sampler(net, x0=torch.ones(2, 3), cond={"y": torch.tensor(1.0)}, uncond={"y": torch.tensor(0.0)})


def test_a_doubled_call_that_returns_half():
    sampler = pfc.Sampler(PLAN, pfc.CFG(2.0))
    cond = {"y": torch.ones(4, 1)}
    with pytest.raises(ValueError, match=r"expected \[8, 3\]"):
        sampler(lambda x, t, y: x[:4] * 2, x0=torch.ones(4, 3), cond=cond, uncond={"y": torch.zeros(4, 1)})


def test_the_gradient_of_a_guidance_scale_of_one():
    scale = torch.tensor(1.0, requires_grad=True)
    cond, uncond = {"y": torch.ones(2, 1)}, {"y": torch.zeros(2, 1)}
    out = pfc.Sampler(PLAN, pfc.CFG(scale))(
        lambda x, t, y: y - x, x0=torch.zeros(2, 3), cond=cond, uncond=uncond, enable_grad=True
    )
    out.sum().backward()
    assert scale.grad is not None and scale.grad > 0


@pytest.mark.parametrize(("path", "prediction"), [("vp", "velocity"), ("linear", "score")])
def test_an_unused_target_leaves_the_gradient_of_x_t_alone(path, prediction):
    data = torch.randn(2, 3, requires_grad=True)
    t = torch.tensor([1.0, 0.5])
    pair = pfc.interpolate(data, t, x0=torch.randn(2, 3), path=path, prediction=prediction)
    pair.x_t.sum().backward()
    alpha = torch.tensor(pfc.paths.get(path).coefficients([1.0, 0.5])[0], dtype=torch.float32)
    torch.testing.assert_close(data.grad, alpha[:, None].expand(2, 3))


def test_an_infinite_prediction_that_the_state_does_not_use():
    row = {"t": 0.0, "step": 0, "a": 0.5, "store": 0, "completes_step": True}
    plan = pfc.Plan.from_dict(
        {
            "format": "pyflowcore.plan", "version": 1, "solver": "by hand", "path": "linear", "prediction": "velocity",
            "working": "velocity", "times": [0.0, 1.0], "slots": 1, "rows": [row],
        }
    )  # fmt: skip
    found = pfc.Sampler(plan)(lambda x, t: x / 0, x0=torch.ones(1, 64 + 3))
    assert torch.equal(found, torch.full((1, 67), 0.5))


def test_empty_batches_with_gradients():
    sampler = pfc.Sampler(PLAN, pfc.CFG(2.0))
    x0 = torch.zeros(0, 3, requires_grad=True)
    cond = {"y": torch.zeros(0, 1)}
    sampler(lambda x, t, y: x * y, x0=x0, cond=cond, uncond=cond, enable_grad=True).sum().backward()
    assert x0.grad is not None and x0.grad.shape == (0, 3)


def test_named_tuples_in_conditions():
    Text = collections.namedtuple("Text", "tokens mask")

    def net(x, t, text):
        assert type(text).__name__ == "Text"
        return text.tokens - x

    cond, uncond = Text(torch.ones(2, 3), True), Text(torch.zeros(3), True)
    pfc.Sampler(PLAN, pfc.CFG(2.0))(net, x0=torch.zeros(2, 3), cond={"text": cond}, uncond={"text": uncond})


def test_plans_travel_and_do_not_change():
    plan = pfc.plan("heun", 3)
    assert pickle.loads(pickle.dumps(plan)) == plan == copy.deepcopy(plan)
    plan.rows[0].a = 7.0
    assert plan == pfc.plan("heun", 3)


def test_a_field_of_a_field_is_refused():
    with pytest.raises(TypeError, match=r"is a pfc\.Field already"):
        pfc.Field(pfc.Field(lambda x, t: x, prediction="noise", path="vp"))


def test_a_scale_that_float32_cannot_hold():
    cond = {"y": torch.ones(1, 1)}
    with pytest.raises(ValueError, match=r"finite in torch\.float32"):
        pfc.Sampler(PLAN, pfc.CFG(1e39))(lambda x, t, y: x, x0=torch.ones(1, 2), cond=cond, uncond=cond)


def test_an_interval_edge_that_the_grid_misses_by_a_rounding():
    seen = []

    def net(x, t, y):
        seen.append(len(x))
        return x

    plan = pfc.plan("euler", grid=[i * 0.1 for i in range(8)] + [1.0])
    assert plan.times[7] > 0.7
    sampler = pfc.Sampler(plan, pfc.CFG(2.0, interval=(0.3, 0.7)))
    sampler(net, x0=torch.ones(1, 2), cond={"y": torch.ones(1, 1)}, uncond={"y": torch.zeros(1, 1)})
    assert seen == [1, 1, 1, 2, 2, 2, 2, 2]
