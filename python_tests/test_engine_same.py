"""Gradients through the engine under hooks on saved tensors, and of modules that are not what was packed."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyflowcore as pfc
from reference import fused

F64 = torch.float64
SAMPLER = pfc.Sampler(pfc.plan("heun", 3), pfc.CFG(2.0, (0.0, 0.6)))


def leaf(*shape, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=make, dtype=F64).requires_grad_()


def copies():
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t)


@pytest.mark.parametrize("how", ["checkpoint", "save_on_cpu", "copies"])
def test_hooks_on_saved_tensors_change_no_gradient(how):
    field = fused.fresh(2, 2, width=5, depth=2)
    x0, c, null = leaf(3, 2), leaf(3, 2, seed=1), leaf(1, 2, seed=2)
    learned = [x0, c, null, *field.module.parameters()]

    def run(x0, c, null):
        # One condition is a result of its own, the other a leaf.
        return SAMPLER(field, x0=x0, cond={"c": 2 * c}, uncond={"c": null}, enable_grad=True).square().sum()

    expected = torch.autograd.grad(run(x0, c, null), learned)
    if how == "checkpoint":
        loss = checkpoint(run, x0, c, null, use_reentrant=False)
    else:
        with torch.autograd.graph.save_on_cpu() if how == "save_on_cpu" else copies():
            loss = run(x0, c, null)
    found = torch.autograd.grad(loss, learned)
    for one, other in zip(found, expected, strict=True):
        assert bool(other.any())
        assert torch.equal(one, other)


def test_a_condition_that_is_written_before_backward_is_noticed():
    field, c = fused.small(2, 2, width=5, depth=2), torch.ones(2, 2, dtype=F64)
    x = pfc.Sampler(pfc.plan("euler", 2))(field, x0=leaf(2, 2), cond={"c": c}, enable_grad=True)
    c += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


class Scaled(nn.Module):
    """Facts of its own beside its parameters."""

    def __init__(self, buffer=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 8, dtype=F64), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 2, dtype=F64)
        )
        self.factor, self.shift = 2.0, torch.tensor(1.0, dtype=F64)
        if buffer:
            self.register_buffer("weight", torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True))
        self.eval()

    def forward(self, x, t):
        out = self.net(torch.cat([x, t[:, None]], dim=1)) * self.factor + self.shift
        return out * self.weight if hasattr(self, "weight") else out


def scale_of(module):
    module.factor = 2.2


def shift_of(module):
    module.shift = torch.tensor(1.2, dtype=F64)


def data_of(module):
    module.net[0].weight.data.mul_(1.0001)


@pytest.mark.parametrize("early", [True, False], ids=["before the trajectory", "before backward"])
@pytest.mark.parametrize("change", [nn.Module.train, scale_of, shift_of, data_of])
def test_a_module_that_computes_something_else_is_refused(change, early):
    torch.manual_seed(0)
    module = Scaled()
    field, x0 = pfc.fuse(module), leaf(5, 2)
    sampler = pfc.Sampler(pfc.plan("euler", 3))
    sampler(field, x0=x0, enable_grad=True).sum().backward()
    if early:
        change(module)
    x = sampler(field, x0=x0, enable_grad=True)
    if not early:
        change(module)
    with pytest.raises(RuntimeError, match=r"another function's: .* call the fused field's refresh\(\)"):
        x.sum().backward()
    if change is not nn.Module.train:
        field.refresh()
        sampler(field, x0=x0, enable_grad=True).sum().backward()


def test_a_parameter_that_is_another_at_backward_is_refused():
    field, x0 = fused.fresh(2, width=5, depth=2), leaf(2, 2)
    x = pfc.Sampler(pfc.plan("euler", 2))(field, x0=x0, enable_grad=True)
    field.module.last.bias = nn.Parameter(field.module.last.bias.detach().clone())
    with pytest.raises(RuntimeError, match="the module has other parameters or buffers"):
        x.sum().backward()


@pytest.mark.parametrize("precise", [False, True])
def test_a_module_that_rounds_its_phases_and_outputs_next_to_zero_are_not_refused(precise):
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2)).double()

        def forward(self, x, t):
            phase = (1000.0 * t.float()).to(x.dtype)
            return self.net(torch.cat([x, torch.sin(phase)[:, None]], dim=1))

    torch.manual_seed(0)
    module = Rounded() if precise else Rounded().float()
    field = pfc.fuse(module)
    x0 = leaf(1, 2).detach().to(module.net[0].weight.dtype).requires_grad_()
    with torch.no_grad():  # a start where the field is next to zero
        module.net[2].bias -= field(x0, torch.tensor(0.0))[0]
    field.refresh()
    sampler = pfc.Sampler(pfc.plan("euler", 1))
    context = contextlib.nullcontext() if precise else torch.autocast("cpu", torch.bfloat16)
    x = sampler(field, x0=x0, enable_grad=True)
    with context:  # as it ran, in the state's dtype
        x.sum().backward()
    assert x0.grad.dtype == x0.dtype
    assert float((x - x0).detach().abs().max()) < 1e-3


def test_buffers_have_gradients_too():
    torch.manual_seed(0)
    module = Scaled(buffer=True)
    field, x0 = pfc.fuse(module), leaf(3, 2)
    sampler, found = pfc.Sampler(pfc.plan("heun", 3)), []
    for one in (field, fused.hidden(field)):
        loss = sampler(one, x0=x0, enable_grad=True).square().sum()
        found.append(torch.autograd.grad(loss, [x0, module.weight]))
    assert bool(found[1][1].all())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_tensor_of_the_module_that_would_get_no_gradient_is_refused():
    torch.manual_seed(0)
    module = Scaled()
    module.shift = torch.tensor(1.0, dtype=F64, requires_grad=True)
    x = pfc.Sampler(pfc.plan("euler", 2))(pfc.fuse(module), x0=leaf(2, 2), enable_grad=True)
    with pytest.raises(
        RuntimeError, match=r"a tensor \[\] that requires grad and is neither a parameter nor a buffer"
    ):
        x.sum().backward()
