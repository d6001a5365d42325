"""Gradients of adaptive solves: the accepted steps with their lengths held constant."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc

METHODS = ("bosh3", "dopri5", "tsit5", "dop853")
DOUBLE = torch.float64


def field(x, t, w):
    return torch.sin(w * x) * (1 + t[:, None]) - x.flip(1)


def start(batch=3, dtype=DOUBLE):
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(batch, 2, generator=g, dtype=DOUBLE).to(dtype)
    w = torch.linspace(0.5, 2.0, batch, dtype=DOUBLE)[:, None].repeat(1, 2).to(dtype)
    return x0, w


@pytest.mark.parametrize("times", [[0.0, 0.6], [0.5, 0.3, 0.1, 0.0]])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_states(method, times):
    x0, w = start()
    plain = pfc.solve(field, x0, times, method, 1e-5, 1e-5, {"w": w})
    x0.requires_grad_()
    found = pfc.solve(field, x0, times, method, 1e-5, 1e-5, {"w": w}, enable_grad=True)
    assert found.x.requires_grad and not plain.x.requires_grad
    torch.testing.assert_close(found.x.detach(), plain.x, rtol=1e-13, atol=1e-13)
    for part in ("status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(found, part), getattr(plain, part))


def recorded(method, times, x0, w, tolerance):
    """The map that the steps of (x0, w) are: the same lengths for every argument."""
    from pyflowcore import solving
    from pyflowcore.adaptive_loop import Problem, run
    from pyflowcore.replay import replay

    at, one = torch.tensor(times, dtype=DOUBLE), torch.tensor(tolerance, dtype=DOUBLE)

    def problem(x, weight):
        made = solving.as_field(field)
        return Problem(made, x, at, method, one, one, {"w": weight}, 10_000, 0.0, False, None, 2, record=True)

    with torch.no_grad():
        buffers, _ = run(problem(x0, w))
    return (lambda x, weight: replay(problem(x, weight), buffers)), buffers


@pytest.mark.parametrize("times", [[0.0, 0.6], [0.5, 0.3, 0.29, 0.0]])
@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method, times):
    x0, w = start(2)
    steps, buffers = recorded(method, times, x0, w, 1e-2)
    assert int(buffers.column("accepted").max()) >= 1
    assert torch.autograd.gradcheck(steps, (x0.requires_grad_(), w.requires_grad_()))


def test_against_the_exact_derivative():
    """dx/dt = w x: the end's derivative in x0 is e^w, in w it is x0 e^w, to the tolerance."""
    x0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=DOUBLE, requires_grad=True)
    w = torch.tensor([0.7, -1.3], dtype=DOUBLE, requires_grad=True)
    net = torch.nn.Linear(1, 1, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        net.weight.fill_(1.0)
    found = pfc.solve(
        lambda x, t, w: net.weight * w[:, None] * x,
        x0,
        [0.0, 1.0],
        "dop853",
        1e-10,
        1e-10,
        {"w": w},
        enable_grad=True,
    )
    gx, gw, gnet = torch.autograd.grad(found.x[-1].sum(), (x0, w, net.weight))
    growth = w.exp()[:, None].expand(2, 2)
    torch.testing.assert_close(gx, growth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gw, (x0 * growth).sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gnet.sum(), (w * (x0 * growth).sum(1)).sum(), rtol=1e-9, atol=1e-9)


def test_many_steps_and_a_sample_that_fails():
    """More steps than the first record has room for; a sample that ends early keeps its derivative, and the others'."""

    def stiff(x, t, rate):
        out = -rate[:, None] * (x - torch.cos(t)[:, None])
        return torch.where(((rate < 2) & (t > 0.5))[:, None], torch.nan, out)

    x0 = torch.ones(3, 1, dtype=DOUBLE, requires_grad=True)
    rate = torch.tensor([300.0, 1.0, 4.0], dtype=DOUBLE)
    found = pfc.solve(stiff, x0, [0.0, 1.0], "dopri5", 1e-8, 1e-8, {"rate": rate}, enable_grad=True)
    assert int(found.accepted.max()) > 70 and found.success.tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(found.x[-1].sum(), x0)
    right = torch.exp(-rate * found.reached)[:, None]
    torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)


def test_the_memory_is_one_state_a_step():
    """What autograd keeps does not grow with the stages of a step."""
    x0, w = start(64)
    x0.requires_grad_()
    kept = []

    def pack(value):
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        found = pfc.solve(field, x0, [0.0, 1.0], "dop853", 1e-8, 1e-8, {"w": w}, enable_grad=True)
    states = sum(value.numel() for value in kept if value.shape == x0.shape and value.dtype == DOUBLE)
    assert states <= 4 * int(found.accepted.max()) * x0.numel()
    found.x[-1].sum().backward()
    assert x0.grad is not None and x0.grad.isfinite().all()


def test_of_a_fused_field():
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2))
    fused, x0 = pfc.fuse(net), torch.randn(4, 2)
    found = pfc.solve(fused, x0, [0.0, 1.0], enable_grad=True)
    found.x[-1].square().sum().backward()
    plain = pfc.solve(lambda x, t: net(torch.cat([x, t[:, None]], 1)), x0, [0.0, 1.0], enable_grad=True)
    (wanted,) = torch.autograd.grad(plain.x[-1].square().sum(), net[0].weight)
    torch.testing.assert_close(net[0].weight.grad, wanted, rtol=1e-3, atol=1e-4)


def net():
    torch.manual_seed(0)
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(2, 8), torch.nn.Tanh(), linear(8, 2)).double()


@pytest.mark.parametrize("where", ["start", "cond", "field"])
def test_a_sample_that_is_not_finite_leaves_the_parameters_gradient(where):
    """Shared parameters: their gradient is that of the other samples alone."""
    module, good = net(), torch.tensor([0, 1, 3])
    x0, c = torch.randn(4, 2, dtype=DOUBLE), torch.rand(4, dtype=DOUBLE)
    if where == "start":
        x0[2] = torch.nan
    if where == "cond":
        c[2] = torch.nan
    if where == "field":
        c[2] = -1.0

    def velocity(x, t, c):
        return module(x + torch.sqrt(c)[:, None])

    found, right = (
        pfc.solve(velocity, x0[at], [0.0, 0.4, 1.0], cond={"c": c[at]}, enable_grad=True)
        for at in (torch.arange(4), good)
    )
    if (
        where == "field"
    ):  # beyond reach: the derivative itself is not finite there, and no other point is known
        assert found.status[2] == pfc.Status.NON_FINITE
        return
    assert found.success.tolist() == [True, True, False, True]
    gradients = [
        torch.autograd.grad(x.square().sum(), list(module.parameters())) for x in (found.x[:, good], right.x)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_log_densitys_gradient_with_a_start_that_is_not_finite():
    module, x1 = net(), torch.randn(3, 2, dtype=DOUBLE)
    right = pfc.log_prob(lambda x, t: module(x), x1[[0, 2]], enable_grad=True)
    x1[1] = torch.nan
    with pytest.warns(pfc.PyflowcoreWarning, match="1 of 3 samples have no density"):
        found = pfc.log_prob(lambda x, t: module(x), x1, enable_grad=True)
    gradients = [
        torch.autograd.grad(value.sum(), list(module.parameters()), allow_unused=True)
        for value in (found.value[[0, 2]], right.value)
    ]
    for one, other in zip(*gradients, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_whatever_the_grad_mode():
    x0, w = start()
    module = net()
    made = {"x": pfc.solve(lambda x, t: module(x), x0, [0.0, 1.0], enable_grad=True).x}
    with torch.no_grad():
        made["no_grad"] = pfc.solve(lambda x, t: module(x), x0, [0.0, 1.0], enable_grad=True).x
    with torch.inference_mode():
        made["inside"] = pfc.solve(lambda x, t: module(x), x0, [0.0, 1.0], enable_grad=True).x
        kept, cond = x0.clone(), {"w": w.clone()}
    made["start"] = pfc.solve(lambda x, t: module(x), kept, [0.0, 1.0], enable_grad=True).x
    assert pfc.solve(
        lambda x, t, w: module(x * w), kept, [0.0, 1.0], cond=cond, enable_grad=True
    ).x.requires_grad
    gradients = [torch.autograd.grad(x.sum(), module[0].weight)[0] for x in made.values()]
    for other in gradients[1:]:
        assert torch.equal(gradients[0], other)


def test_rows_cost_no_evaluations_nor_operators_of_their_own():
    """The operators of a replay do not grow with the times inside its steps."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    x0, w = start()
    calls = []
    for count in (11, 1001):
        times = torch.linspace(0, 1, count, dtype=DOUBLE)
        Count.calls = 0
        with Count():
            found = pfc.solve(field, x0, times, "tsit5", 1e-6, 1e-6, {"w": w}, enable_grad=True)
        calls.append(Count.calls)
        plain = pfc.solve(field, x0, times, "tsit5", 1e-6, 1e-6, {"w": w})
        torch.testing.assert_close(found.x.detach(), plain.x, rtol=1e-12, atol=1e-12)
    assert calls[1] < 1.5 * calls[0]
