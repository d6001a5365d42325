"""Gradients: of each operator, and through a whole solve, against differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import pyflowcore as pfc
from reference.tables import table

SEEDS = torch.tensor([3, 4])


def leaf(*shape, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=make, dtype=torch.float64).requires_grad_()


ROW = table(
    p=0.3,
    q=-1.7,
    a=0.93,
    c=1.4,
    b_new=0.2,
    e_new=-0.6,
    b={0: 0.4},
    e={1: 0.7},
    s={0: 0.5},
    r={1: 0.1},
    store=1,
)


@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_combine(point, check):
    def run(x, y, d0, d1, out):
        return pfc.ops.combine(x, ROW, 0, y=y if point else None, slots=[d0, d1], outs=[out], seeds=SEEDS)

    assert check(run, tuple(leaf(2, 3, seed=k) for k in range(5)))


@pytest.mark.parametrize(("width", "branches"), [(1, 2), (2, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("per_branch", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_guidance(width, branches, per_branch, stacked):
    guidance = leaf(1, branches - 1, width) if per_branch else leaf(1, width)
    outs = [leaf(2 * branches, 3)] if stacked else [leaf(2, 3, seed=k) for k in range(branches)]

    def run(x, guidance, *outs):
        return pfc.ops.combine(x, ROW[:, :] * 1, 0, slots=[x, x], outs=outs, guidance=guidance, seeds=SEEDS)

    assert gradcheck(run, (leaf(2, 3, seed=9), guidance, *outs))


@pytest.mark.parametrize(
    "letters", [{"evaluates": 0.0, "a": 0.5, "c": 0.25}, {"a": 0.0, "c": 0.0, "b_new": 1.0, "e_new": 2.0}]
)
def test_rows_that_use_little(letters):
    row = table(**letters)
    outs = [leaf(2, 3, seed=1)] if letters.get("evaluates", 1.0) else []
    assert gradcheck(lambda x, *outs: pfc.ops.combine(x, row, 0, outs=outs), (leaf(2, 3), *outs))


def test_a_half_precision_output_gets_a_gradient_of_its_dtype():
    out = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    x, _, _ = pfc.ops.combine(torch.zeros(2, 3), table(b_new=0.5), 0, outs=[out])
    x.sum().backward()
    assert out.grad.dtype == torch.bfloat16
    assert out.grad.tolist() == [[0.5] * 3] * 2


@pytest.mark.parametrize("path", ["linear", "trigonometric", "vp"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score", "v"])
def test_interpolate(path, prediction):
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    data, x0 = leaf(2, 3), leaf(2, 3, seed=1)
    options = {"path": path, "prediction": prediction}
    assert gradcheck(lambda a, b: pfc.interpolate(a, t, x0=b, **options), (data, x0))
    assert gradcheck(lambda a: pfc.interpolate(a, t, seeds=SEEDS, **options), (data,))
    assert gradgradcheck(lambda a, b: pfc.interpolate(a, t, x0=b, **options), (data, x0))


@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
@pytest.mark.parametrize("branches", ["batch", "calls"])
def test_through_a_solve_of_ten_steps(solver, branches):
    """In the noise, a parameter of the field, a condition and the guidance scale."""
    sampler = pfc.Sampler(pfc.plan(solver, 10), pfc.CFG(2.0, (0.1, 0.8)), branches=branches)

    def solve(x0, weight, y, scale):
        def net(x, t, y):
            return torch.tanh(x * weight) * (1 - t[:, None]) + y

        return sampler(
            net, x0=x0, seeds=SEEDS, cond={"y": y}, uncond={"y": torch.zeros(2, 1, dtype=torch.float64)},
            guidance_scale=scale, enable_grad=True,
        )  # fmt: skip

    for scale in (torch.tensor(2.5, dtype=torch.float64), torch.tensor([2.5, 0.5], dtype=torch.float64)):
        assert gradcheck(solve, (leaf(2, 3), leaf(3, seed=1), leaf(2, 1, seed=2), scale.requires_grad_()))


@pytest.mark.parametrize("prediction", ["data", "noise", "v"])
def test_through_ddim_with_every_prediction(prediction):
    grid = [0.1, 0.3, 0.5, 0.8, 0.95]
    sampler = pfc.Sampler(pfc.plan("ddim", grid=grid, path="vp", prediction=prediction))
    field = pfc.Field(lambda x, t: torch.sin(x) * t[:, None], prediction, "vp")
    assert gradcheck(lambda x0: sampler(field, x0=x0, enable_grad=True), (leaf(2, 3),))


def test_through_the_trajectory_and_a_negative_sign():
    sampler = pfc.Sampler(pfc.plan("heun", 5))
    field = pfc.Field(lambda x, t: torch.sin(x), sign=-1)
    assert gradcheck(
        lambda x0: sampler(field, x0=x0, enable_grad=True, return_trajectory=True).states, (leaf(2, 3),)
    )


def test_a_bfloat16_field_passes_gradients():
    weight = torch.full((3,), 0.5, dtype=torch.bfloat16, requires_grad=True)
    sampler = pfc.Sampler(pfc.plan("heun", 4))
    field = pfc.Field(lambda x, t: x * weight, dtype=torch.bfloat16)
    x0 = torch.ones(2, 3, requires_grad=True)
    sampler(field, x0=x0, enable_grad=True).sum().backward()
    # x1 = x0 prod(1 + h/2 + h^2/8) with a first-order last step, whose derivative in x0 is the factor itself.
    factor = (1 + 0.125 + 0.125**2 / 2) ** 3 * 1.125
    torch.testing.assert_close(x0.grad, torch.full((2, 3), factor), rtol=2e-2, atol=0)
    assert torch.isfinite(weight.grad).all()
    assert (weight.grad > 0).all()
