"""Log-densities of fused fields: the kernels against the module itself, what runs where, and gradients."""

from __future__ import annotations

import pytest
import torch
from test_likelihood import back
from torch import nn

import pyflowcore as pfc

F64 = torch.float64


class Net(nn.Module):
    """[x, t, y] through two layers with a residual block between them."""

    def __init__(self, dim=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner = nn.Linear(dim + 3, 24), nn.Linear(24, 24)
        self.last = nn.Linear(24, dim)

    def forward(self, x, t, y):
        h = torch.tanh(self.first(torch.cat([x, t, y], dim=1)))
        return self.last(h + torch.nn.functional.silu(self.inner(h)))


def pair(**facts):
    """The fused field and the module as a field like any other, float64."""
    net = Net().double()
    return pfc.fuse(net, ("x", "t", "y"), **facts), pfc.Field(lambda x, t, y: net(x, t[:, None], y), **facts)


def starts(dtype=F64):
    return pfc.randn(range(9), (4,), dtype=dtype), {"y": pfc.randn(range(20, 29), (2,), dtype=dtype)}


FACTS = {
    "velocity": {},
    "negative": {"sign": -1},
    "time": {"time": lambda t: 2.0 - t},
    "data": {"prediction": "data"},
    "noise on another path": {"prediction": "noise", "path": "vp"},
}
INSIDE = [0.9, 0.6, 0.3, 0.15]


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("divergence", ["exact", pfc.Hutchinson(3, seeds=range(9))])
@pytest.mark.parametrize("solver", ["rk4", "ab2"])
def test_fixed_steps(name, divergence, solver):
    fused, field = pair(**FACTS[name])
    x, cond = starts()
    facts = {"prediction": fused.prediction, "path": fused.path}
    plan, there = (pfc.plan(solver, grid=grid, **facts) for grid in (INSIDE, INSIDE[::-1]))
    found = pfc.log_prob(fused, x, plan=plan, cond=cond, divergence=divergence)
    wanted = pfc.log_prob(field, x, plan=plan, cond=cond, divergence=divergence)
    assert found.engine == "fixed steps in one operator call; fused network, products inside its kernel"
    assert (found.value - wanted.value).abs().max() < 1e-11
    assert (found.stderr - wanted.stderr).abs().max() < 1e-11
    assert torch.equal(found.nfe, wanted.nfe)
    drawn = pfc.sample_with_log_prob(fused, x0=x, plan=there, cond=cond, divergence=divergence)
    other = pfc.sample_with_log_prob(field, x0=x, plan=there, cond=cond, divergence=divergence)
    assert (drawn.x - other.x).abs().max() < 1e-11 and (drawn.value - other.value).abs().max() < 1e-11


@pytest.mark.parametrize("name", ["velocity", "negative", "time"])
@pytest.mark.parametrize("divergence", ["exact", pfc.Hutchinson(2, seeds=range(9))])
def test_adaptive_steps(name, divergence):
    fused, field = pair(**FACTS[name])
    x, cond = starts()
    options = {"cond": cond, "divergence": divergence, "rtol": 1e-6, "atol": 1e-6}
    found, wanted = pfc.log_prob(fused, x, **options), pfc.log_prob(field, x, **options)
    steps = "a batched loop: the field maps times" if name == "time" else "one operator call"
    assert found.engine == f"adaptive steps in {steps}; fused network, products inside its kernel"
    assert (found.value - wanted.value).abs().max() < 1e-10
    assert torch.equal(found.nfe, wanted.nfe)


def test_float32():
    """No worse than twice the error of the module's own float32."""
    fused, field = pair()
    x, cond = starts()
    exact = pfc.log_prob(field, x.float().double(), plan=back("rk4", 10), cond=cond).value
    fused.module.float()
    fused.refresh()
    single = {"cond": {"y": cond["y"].float()}, "plan": back("rk4", 10)}
    found = pfc.log_prob(fused, x.float(), **single).value
    plain = pfc.log_prob(field, x.float(), **single).value
    assert found.dtype == F64
    assert (found - exact).abs().max() <= 2.0 * (plain - exact).abs().max() + 1e-6


def test_a_sample_has_its_bits_in_any_batch():
    fused, _ = pair()
    x, cond = starts()
    for options in ({"plan": back("rk4", 5)}, {}):
        whole = pfc.log_prob(fused, x, cond=cond, **options)
        alone = pfc.log_prob(fused, x[3:4], cond={"y": cond["y"][3:4]}, **options)
        assert torch.equal(whole.value[3:4], alone.value) and torch.equal(whole.nfe[3:4], alone.nfe)


def test_gradients_run_the_module():
    fused, _ = pair()
    x, cond = starts()
    x = x[:2].requires_grad_()
    y = cond["y"][:2].requires_grad_()

    def value(x, y, *weights):
        return pfc.log_prob(fused, x, plan=back("midpoint", 1), cond={"y": y}, enable_grad=True).value

    assert pfc.log_prob(fused, x, plan=back("euler", 1), cond={"y": y}, enable_grad=True).engine.startswith(
        "fixed steps; forward mode"
    )
    assert torch.autograd.gradcheck(value, (x, y, fused.module.inner.bias))
    assert not pfc.log_prob(fused, x, plan=back("euler", 1), cond={"y": y}).value.requires_grad


def test_images_through_a_fused_field():
    net = nn.Sequential(nn.Linear(13, 16), nn.SiLU(), nn.Linear(16, 12)).double()
    fused = pfc.fuse(net, ("x", "t"))
    x = pfc.randn(range(3), (2, 2, 3), dtype=F64)
    plan = back("heun", 3)
    found = pfc.log_prob(fused, x, plan=plan)
    flat = pfc.log_prob(fused, x.flatten(1), plan=plan)
    assert torch.equal(found.value, flat.value)


X, COND = starts()
REFUSED = {
    "elements": (
        lambda: pfc.log_prob(pair()[0], X[:, :3], plan=back("euler", 1), cond=COND),
        ["4", "[9, 3]"],
    ),
    "cond": (lambda: pfc.log_prob(pair()[0], X, plan=back("euler", 1)), ["y", "missing"]),
    "path": (lambda: pfc.log_prob(pair(path="vp")[0], X, plan=back("euler", 1), cond=COND), ["path", "VP"]),
    "adaptive": (lambda: pfc.log_prob(pair(prediction="data")[0], X, cond=COND), ["field", "data"]),
    "precision": (
        lambda: pfc.log_prob(pfc.fuse(Net(), ("x", "t", "y"), precision="tf32"), X, cond=COND),
        ["precision", "tf32", "CUDA"],
    ),
    "precision of gradients": (
        lambda: pfc.log_prob(
            pfc.fuse(Net(), ("x", "t", "y"), precision="bfloat16"), X, cond=COND, enable_grad=True
        ),
        ["precision", "bfloat16", "CUDA"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
