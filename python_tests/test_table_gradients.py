"""The gradient of combine in its table, against differences in float64: every letter of a row, alone and through rows."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import pyflowcore as pfc
from pyflowcore import _core
from reference.tables import table

R = _core.record
SEEDS = torch.tensor([3, 4])
SCALARS = ("p", "q", "a", "c", "b_new", "e_new")
# One parameter for each coefficient of a row with two slots and two draws.
COLUMNS = [R[name] for name in SCALARS] + [R[name] + k for name in ("b", "e", "s", "r") for k in range(2)]


def leaf(*shape, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype).requires_grad_()


def row_of(values, **letters):
    """A table of one row whose coefficients are `values`, [14]; a - 1 follows a, as the kernel expects."""
    fixed = table(s={0: 1.0}, r={1: 1.0}, **letters)[0]
    line = fixed.index_copy(0, torch.tensor(COLUMNS), values)
    minus = torch.stack([values[2] - 1.0, values[3] - 1.0])
    return line.index_copy(0, torch.tensor([R["a_minus_1"], R["c_minus_1"]]), minus)[None]


def everything(**changes):
    values = dict(zip(SCALARS, (0.3, -1.7, 0.93, 1.4, 0.2, -0.6), strict=True)) | changes
    return torch.tensor(
        [*(values[n] for n in SCALARS), 0.4, -0.2, 0.1, 0.7, 0.5, -0.3, 0.2, 0.1], dtype=torch.float64
    ).requires_grad_()


CASES = {
    "general": everything(a=0.3, c=-1.4),
    "near one": everything(),
    "zero": torch.zeros(len(COLUMNS), dtype=torch.float64, requires_grad=True),
    "an identity": everything(p=0.0, q=1.0, a=1.0, c=1.0, b_new=0.0, e_new=0.0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_every_coefficient(case, point, check):
    """Also where it is exactly 0 or 1, which the kernel treats apart."""

    def run(values, x, y, d0, d1, out):
        return pfc.ops.combine(
            x, row_of(values), 0, y=y if point else None, slots=[d0, d1], outs=[out], seeds=SEEDS
        )

    # The differences leave 0 and 1, so they cross the kernel's branches.
    assert check(run, (CASES[case], *(leaf(2, 3, seed=k) for k in range(5))))


def test_the_gradient_of_a_is_in_its_own_column():
    x = leaf(2, 3)
    line = table(a=0.9, c=1.2, b_new=0.5).requires_grad_()
    new, point, _ = pfc.ops.combine(x, line, 0, outs=[leaf(2, 3, seed=1)])
    (new.sum() + 2.0 * point.sum()).backward()
    grad = line.grad[0]
    assert grad[R["a"]].item() == pytest.approx((1 + 2 * 1.2) * x.sum().item(), rel=1e-14)
    assert grad[R["c"]].item() == pytest.approx(2 * new.sum().item(), rel=1e-14)
    still = [R[n] for n in ("t", "evaluates", "store", "in_scale", "a_minus_1", "c_minus_1")]
    still += range(R["draw"], R["draw"] + R["max_draws"])
    assert grad[still].abs().max() == 0.0
    absent = [*range(R["b"], R["draw"]), *range(R["s"], R["width"])]
    assert grad[absent].abs().max() == 0.0  # the call has neither slots nor draws


def test_a_row_without_an_evaluation():
    values = everything(b_new=0.0, e_new=0.0)

    def run(values, x, d0, d1):
        mask = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, *[1.0] * 8], dtype=torch.float64)
        return pfc.ops.combine(x, row_of(values * mask, evaluates=0.0), 0, slots=[d0, d1], seeds=SEEDS)[:2]

    assert gradcheck(run, (values, leaf(2, 3), leaf(2, 3, seed=1), leaf(2, 3, seed=2)))


@pytest.mark.parametrize("width", [1, 2])
def test_under_guidance(width):
    """q multiplies the guided output."""

    def run(values, guidance, out, x, d0, d1):
        return pfc.ops.combine(
            x, row_of(values), 0, slots=[d0, d1], outs=[out], guidance=guidance, seeds=SEEDS
        )

    slots = leaf(2, 3, seed=1), leaf(2, 3, seed=2)
    assert gradcheck(run, (everything(), leaf(1, width), leaf(4, 3, seed=3), leaf(2, 3, seed=4), *slots))


def test_through_several_rows():
    """Three rows that hand states, points and predictions on, a field between them, noise redrawn by the second."""
    weight = leaf(3, seed=7)

    def run(first, second, third, x):
        tables = [row_of(v) for v in (first, second, third)]
        slots, y = [x, x], None
        for row in tables:
            point = x if y is None else y
            x, y, d = pfc.ops.combine(
                x, row, 0, y=y, slots=slots, outs=[torch.tanh(point * weight)], seeds=SEEDS
            )
            slots = [slots[1], d]
        return x, y

    starts = [everything().detach().add_(0.1 * k).requires_grad_() for k in range(3)]
    assert gradcheck(run, (*starts, leaf(2, 3)))


def test_only_the_row_that_ran_has_a_gradient():
    line = torch.cat([table(b_new=0.5)] * 3).requires_grad_()
    new, _, _ = pfc.ops.combine(leaf(2, 3), line, 1, outs=[leaf(2, 3, seed=1)])
    new.sum().backward()
    assert line.grad[[0, 2]].abs().max() == 0.0
    assert line.grad[1].abs().max() > 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_states_and_outputs_sum_in_float64(dtype):
    state = torch.float32
    x, out = leaf(4, 1000, dtype=state), leaf(4, 1000, seed=1, dtype=dtype)
    line = table(a=0.9, b_new=0.5).requires_grad_()
    new, _, _ = pfc.ops.combine(x, line, 0, outs=[out])
    new.sum().backward()
    wanted = out.detach().double().sum().item()
    assert line.grad[0, R["b_new"]].item() == pytest.approx(wanted, abs=1e-10)
    assert line.grad.dtype == torch.float64


def test_an_empty_batch_has_the_gradient_zero():
    line = table(b_new=0.5).requires_grad_()
    new, _, _ = pfc.ops.combine(torch.zeros(0, 3), line, 0, outs=[torch.zeros(0, 3)])
    new.sum().backward()
    assert line.grad.abs().max() == 0.0


def test_nothing_more_is_kept_where_the_table_is_fixed():
    """The cost for a solve whose table is not learned: the same tensors are saved as before, and none of the row's."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        for learned in (False, True):
            saved.clear()
            line = table(b_new=0.5, b={0: 0.1}).requires_grad_(learned)
            pfc.ops.combine(leaf(2, 3), line, 0, outs=[leaf(2, 3, seed=1)], slots=[leaf(2, 3, seed=2)])
            assert (torch.Size([2, 3]) in saved) == learned


def test_on_every_device_and_in_float32(device):
    """The table stays on the CPU; its gradient is that of the float64 row, to float32's rounding."""

    def gradient(where, dtype):
        values = everything()
        x, d0, d1, out = (leaf(2, 3, seed=k).detach().to(where, dtype) for k in range(4))
        outs = [torch.cat([out, -0.3 * out])]
        guidance = torch.full((1, 1), 1.6, dtype=dtype, device=where)
        results = pfc.ops.combine(
            x, row_of(values), 0, slots=[d0, d1], outs=outs, guidance=guidance, seeds=SEEDS.to(where)
        )
        sum((k + 1) * r.square().sum() for k, r in enumerate(results)).backward()
        return values.grad

    wanted = gradient(torch.device("cpu"), torch.float64)
    torch.testing.assert_close(gradient(device, torch.float32), wanted, rtol=1e-5, atol=1e-5)
