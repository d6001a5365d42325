"""Gradients through the engine: against differences, and against the loop; in the start, conditions, scales and parameters."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import pyflowcore as pfc
from reference import fused
from reference.fused import hidden

F64 = torch.float64
SOLVERS = (
    "euler", "heun", "rk4", "ab2", "dpmpp_2m", "unipc", "res", "deis", "euler_maruyama",
    "stochastic_heun", "dpmpp_2m_sde",
)  # fmt: skip


def leaf(*shape, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=make, dtype=F64).requires_grad_()


def small(conditions=2, make=fused.small, **facts):
    return make(2, conditions, width=5, depth=2, **facts)


@pytest.mark.parametrize("solver", SOLVERS)
def test_against_differences(solver):
    """Every input that a gradient can flow into, under CFG of which one row takes one branch."""
    field, sampler = small(), pfc.Sampler(pfc.plan(solver, 3), pfc.CFG(2.0, (0.0, 0.6)))

    def run(x0, c, null, scale):
        return sampler(
            field, x0=x0, cond={"c": c}, uncond={"c": null}, guidance_scale=scale, seeds=[1, 2], enable_grad=True
        )  # fmt: skip

    scale = torch.tensor([1.5, -0.5], dtype=F64, requires_grad=True)
    assert gradcheck(run, (leaf(2, 2), leaf(2, 2, seed=1), leaf(1, 2, seed=2), scale))


def test_parameters_against_differences():
    field, sampler, x0 = small(0, fused.fresh), pfc.Sampler(pfc.plan("heun", 2)), leaf(2, 2)
    weight = torch.randn(2, 2, dtype=F64)
    (sampler(field, x0=x0, enable_grad=True) * weight).sum().backward()
    make = torch.Generator().manual_seed(0)
    for parameter in field.module.parameters():
        moved = torch.randn(parameter.shape, generator=make, dtype=F64)
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                parameter += sign * 1e-6 * moved
            field.refresh()
            values.append(float((sampler(field, x0=x0) * weight).sum()))
        difference = (values[0] - values[1]) / 2e-6
        assert float((parameter.grad * moved).sum()) == pytest.approx(difference, rel=1e-7, abs=1e-8)


def gradients(field, sampler, inputs, module, **arguments):
    learned = [*inputs, *module.parameters()]
    for tensor in learned:
        tensor.grad = None
    found = sampler(field, enable_grad=True, **arguments)
    states = found.states if isinstance(found, pfc.Trajectory) else found
    make = torch.Generator().manual_seed(5)
    (states * torch.randn(states.shape, generator=make, dtype=states.dtype)).sum().backward()
    return states.detach(), [tensor.grad for tensor in learned]


def agree(field, sampler, inputs, **arguments):
    assert sampler.explain(field, enable_grad=True, **arguments).engine == "engine"
    one, grads = gradients(field, sampler, inputs, field.module, **arguments)
    other, expected = gradients(hidden(field), sampler, inputs, field.module, **arguments)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for grad, wanted in zip(grads, expected, strict=True):
        assert (grad is None) == (wanted is None)
        if wanted is not None:
            assert bool(wanted.any())
            torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", pfc.solvers())
def test_every_solver_against_the_loop(solver):
    x0 = leaf(3, 2)
    agree(small(0), pfc.Sampler(pfc.plan(solver, 5)), [x0], x0=x0, seeds=[4, 5, 6])


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("of_time", [False, True])
def test_guidance_against_the_loop(width, of_time):
    x0, c, null, w = leaf(3, 2), leaf(3, 2, seed=1), leaf(1, 2, seed=2), leaf(width, seed=3)
    sampler = pfc.Sampler(pfc.plan("heun", 4), pfc.CFG(1.0, (0.2, 0.9)))
    scale = (lambda t: t * w) if of_time else w
    agree(small(), sampler, [x0, c, null, w], x0=x0, cond={"c": c}, uncond={"c": null}, guidance_scale=scale)


def test_several_conditions_against_the_loop():
    x0, cs, null, w = leaf(3, 2), [leaf(3, 2, seed=k) for k in (1, 2)], leaf(3, 2, seed=3), leaf(3, seed=4)
    sampler = pfc.Sampler(pfc.plan("dpmpp_2m", 4), pfc.CFG(2.0, weights=(w, lambda t: t)))
    cond = [{"c": c} for c in cs]
    agree(small(), sampler, [x0, *cs, null, w], x0=x0, cond=cond, uncond={"c": null})


def test_one_condition_for_both_branches_counts_twice():
    x0, c = leaf(3, 2), leaf(3, 2, seed=1)
    sampler = pfc.Sampler(pfc.plan("euler", 3), pfc.CFG(3.0))
    agree(small(), sampler, [x0, c], x0=x0, cond={"c": c}, uncond={"c": c})


@pytest.mark.parametrize("solver", ["heun", "unipc"])
def test_the_states_at_the_grid_points_carry_gradients(solver):
    x0 = leaf(3, 2)
    agree(small(0), pfc.Sampler(pfc.plan(solver, 4)), [x0], x0=x0, return_trajectory=True)


def test_starts_from_data_and_scaled_inputs():
    init = leaf(2, 2)
    plan = pfc.plan("heun", 3, grid=pfc.grids.uniform().partial(0.5))
    agree(small(0), pfc.Sampler(plan), [init], init=init, seeds=[1, 2])
    edm = {"path": "ve", "prediction": pfc.EDM(0.5)}
    agree(small(0, **edm), pfc.Sampler(pfc.plan("heun", 3, **edm)), [init], x0=init)


def test_backwards_in_time_and_a_field_of_the_other_sign():
    x0 = leaf(2, 2)
    agree(small(0, sign=-1), pfc.Sampler(pfc.plan("ab3", grid=[0.9, 0.5, 0.2, 0.1])), [x0], x0=x0)


def test_a_velocity_taken_to_be_zero():
    x0, c, null = leaf(2, 2), leaf(2, 2, seed=1), leaf(2, 2, seed=2)
    sampler = pfc.Sampler(pfc.plan("heun", 4), pfc.CFG(2.0, zero_until=0.3))
    agree(small(), sampler, [x0, c, null], x0=x0, cond={"c": c}, uncond={"c": null})


def test_labels_and_the_parameters_of_their_embedding():
    class Labelled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(4, 3, dtype=F64)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(6, 8, dtype=F64), torch.nn.Tanh(), torch.nn.Linear(8, 2, dtype=F64)
            )

        def forward(self, x, t, y):
            return self.net(torch.cat([x, t[:, None], self.table(y)], dim=1))

    field, x0, y = pfc.fuse(Labelled(), ("x", "t", "y")), leaf(3, 2), torch.tensor([0, 2, 1])
    sampler = pfc.Sampler(pfc.plan("heun", 3), pfc.CFG(2.0))
    agree(field, sampler, [x0], x0=x0, cond={"y": y}, uncond={"y": torch.tensor([3])})


def test_some_parameters_are_frozen():
    field, x0 = small(0, fused.fresh), leaf(2, 2)
    field.module.first.requires_grad_(False)
    agree(field, pfc.Sampler(pfc.plan("euler", 2)), [x0], x0=x0)
    assert field.module.first.weight.grad is None
    assert bool(field.module.last.weight.grad.any())
    field.module.requires_grad_(False)
    agree(field, pfc.Sampler(pfc.plan("euler", 2)), [x0], x0=x0)


def test_parameters_alone():
    field = small(0)
    sampler = pfc.Sampler(pfc.plan("euler", 2))
    agree(field, sampler, [], shape=(2,), seeds=[1, 2], dtype=F64)


def test_nothing_to_differentiate():
    field = small(0, fused.fresh)
    field.module.requires_grad_(False)
    x = pfc.Sampler(pfc.plan("euler", 2))(field, shape=(2,), seeds=[1, 2], enable_grad=True)
    assert not x.requires_grad


def test_an_empty_batch():
    x0 = leaf(0, 2)
    pfc.Sampler(pfc.plan("heun", 2))(small(0), x0=x0, enable_grad=True).sum().backward()
    assert x0.grad.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_float32_module(dtype):
    """Its parameters' gradients are float32 whatever the state is."""
    field, x0 = small(dtype=torch.float32), leaf(3, 2).detach().to(dtype).requires_grad_()
    sampler, c = pfc.Sampler(pfc.plan("rk4", 4)), leaf(3, 2, seed=1)
    _, found = gradients(field, sampler, [x0, c], field.module, x0=x0, cond={"c": c})
    assert [grad.dtype for grad in found] == [dtype, F64] + [torch.float32] * (len(found) - 2)
    double = small(make=fused.fresh)
    double.module.load_state_dict(field.module.state_dict())
    double.refresh()
    exact = [x0.detach().double().requires_grad_(), c]
    _, wanted = gradients(double, sampler, exact, double.module, x0=exact[0], cond={"c": c})
    for grad, value in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad.double(), value, rtol=2e-5, atol=2e-5)


def test_a_second_derivative_is_refused():
    x0 = leaf(2, 2)
    x = pfc.Sampler(pfc.plan("euler", 2))(small(0), x0=x0, enable_grad=True)
    with pytest.raises(RuntimeError, match=r"a second derivative .* has none"):
        torch.autograd.grad(x.sum(), x0, create_graph=True)


def test_weights_that_changed_since_they_were_packed_are_refused():
    field, x0, sampler = small(0, fused.fresh), leaf(2, 2), pfc.Sampler(pfc.plan("euler", 2))
    with torch.no_grad():
        field.module.last.bias += 1.0
    with pytest.raises(RuntimeError, match="changed since they were packed"):
        sampler(field, x0=x0, enable_grad=True)
    field.refresh()
    agree(field, sampler, [x0], x0=x0)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_that_is_written_before_backward_is_noticed(frozen):
    field, x0 = small(0, fused.fresh), leaf(2, 2)
    field.module.requires_grad_(not frozen)
    x = pfc.Sampler(pfc.plan("euler", 2))(field, x0=x0, enable_grad=True)
    with torch.no_grad():
        field.module.last.bias += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_a_graph_is_gone_through_twice_where_it_is_retained():
    field, x0 = small(0), leaf(2, 2)
    x = pfc.Sampler(pfc.plan("heun", 2))(field, x0=x0, enable_grad=True)
    x.sum().backward(retain_graph=True)
    first = x0.grad.clone()
    x.sum().backward()
    assert torch.equal(x0.grad, 2 * first)


def test_what_is_saved_does_not_grow_with_the_network():
    """The points, one state for each evaluation, and the parameters, which are there anyway."""
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    field, x0 = fused.small(2, width=64), leaf(50, 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pfc.Sampler(pfc.plan("rk4", 5))(field, x0=x0, enable_grad=True)
    parameters = sum(parameter.numel() for parameter in field.module.parameters())
    assert sum(saved) == pfc.plan("rk4", 5).nfe * x0.numel() + parameters


def test_training_through_a_trajectory():
    """Gradient descent moves the samples to a point; the field is renewed after each."""
    field = fused.fresh(2, width=16, depth=2)
    sampler, x0 = pfc.Sampler(pfc.plan("heun", 3)), leaf(16, 2).detach()
    optimizer = torch.optim.Adam(field.module.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (sampler(field, x0=x0, enable_grad=True) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        field.refresh()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
