"""Gradients through the engine: against differences, and against the loop; in the start, conditions, scales and parameters."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import pyflowcore as pfc
from reference.fused import by_hand, hidden
from reference.networks import small_network

F64 = torch.float64
SOLVERS = (
    "euler", "heun", "rk4", "ab2", "dpmpp_2m", "unipc", "res", "deis", "euler_maruyama",
    "stochastic_heun", "dpmpp_2m_sde",
)  # fmt: skip


def leaf(*shape, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=make, dtype=F64).requires_grad_()


def small(conditions=2, **facts):
    return by_hand(network=small_network(2, conditions, width=5, residual=True, depth=2), **facts)


@pytest.mark.parametrize("solver", SOLVERS)
def test_against_differences(solver):
    """Every input that a gradient can flow into, under CFG of which one row takes one branch."""
    field, sampler = small(), pfc.Sampler(pfc.plan(solver, 3), pfc.CFG(2.0, (0.0, 0.6)))

    def run(x0, c, null, scale, flat):
        field.module.flat.data = flat.detach()
        return sampler(
            field, x0=x0, cond={"c": c}, uncond={"c": null}, guidance_scale=scale, seeds=[1, 2], enable_grad=True
        )  # fmt: skip

    scale = torch.tensor([1.5, -0.5], dtype=F64, requires_grad=True)
    flat = field.module.flat.detach().clone()
    assert gradcheck(run, (leaf(2, 2), leaf(2, 2, seed=1), leaf(1, 2, seed=2), scale, flat))


def test_parameters_against_differences():
    field, sampler, x0 = small(0), pfc.Sampler(pfc.plan("heun", 2)), leaf(2, 2)
    weight = torch.randn(2, 2, dtype=F64)
    (sampler(field, x0=x0, enable_grad=True) * weight).sum().backward()
    flat, grad = field.module.flat, field.module.flat.grad
    moved = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            flat += sign * 1e-6 * moved
            values.append((sampler(field, x0=x0) * weight).sum())
            flat -= sign * 1e-6 * moved
    assert float((grad * moved).sum()) == pytest.approx(float(values[0] - values[1]) / 2e-6, rel=1e-7)


def gradients(field, sampler, inputs, module, **arguments):
    for tensor in (*inputs, module.flat):
        tensor.grad = None
    found = sampler(field, enable_grad=True, **arguments)
    states = found.states if isinstance(found, pfc.Trajectory) else found
    make = torch.Generator().manual_seed(5)
    (states * torch.randn(states.shape, generator=make, dtype=states.dtype)).sum().backward()
    return states.detach(), [tensor.grad for tensor in (*inputs, module.flat)]


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


def test_parameters_that_need_no_gradient_get_none():
    field, x0 = small(0), leaf(2, 2)
    field.module.requires_grad_(False)
    pfc.Sampler(pfc.plan("euler", 2))(field, x0=x0, enable_grad=True).sum().backward()
    assert field.module.flat.grad is None
    assert bool(x0.grad.any())


def test_parameters_alone():
    field = small(0)
    pfc.Sampler(pfc.plan("euler", 2))(
        field, shape=(2,), seeds=[1, 2], dtype=F64, enable_grad=True
    ).sum().backward()
    assert bool(field.module.flat.grad.any())


def test_nothing_to_differentiate():
    field = small(0)
    field.module.requires_grad_(False)
    x = pfc.Sampler(pfc.plan("euler", 2))(field, shape=(2,), seeds=[1, 2], enable_grad=True)
    assert not x.requires_grad


def test_float32():
    field, x0 = small(0), leaf(3, 2)
    sampler = pfc.Sampler(pfc.plan("rk4", 4))
    _, exact = gradients(field, sampler, [x0], field.module, x0=x0)
    single = x0.detach().float().requires_grad_()
    _, found = gradients(field, sampler, [single], field.module, x0=single)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_refused():
    x0 = leaf(2, 2)
    x = pfc.Sampler(pfc.plan("euler", 2))(small(0), x0=x0, enable_grad=True)
    with pytest.raises(RuntimeError, match=r"a second derivative .* has none"):
        torch.autograd.grad(x.sum(), x0, create_graph=True)


def test_a_parameter_that_was_written_before_backward_is_noticed():
    field, x0 = small(0), leaf(2, 2)
    x = pfc.Sampler(pfc.plan("euler", 2))(field, x0=x0, enable_grad=True)
    with torch.no_grad():
        field.module.flat += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_backward_holds_one_evaluation_at_a_time():
    """What is saved for backward does not grow with the network: the points, and the parameters."""
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    field, x0 = by_hand(network=small_network(2, width=64, depth=3)), leaf(50, 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pfc.Sampler(pfc.plan("rk4", 5))(field, x0=x0, enable_grad=True)
    evaluations = pfc.plan("rk4", 5).nfe
    assert sum(saved) == evaluations * x0.numel() + field.module.flat.numel()
