"""combine_ and combine against NumPy float64: dtypes, sizes, layouts, branches, guidance, noise, aliasing, streaming."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference.tables import R, float64, table
from reference.tables import combine as reference

STATES = (torch.float32, torch.float64)
OUTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = [
    (0,),
    (1,),
    (3,),
    (7,),
    (1025,),
    (0, 5),
    (2, 0),
    (3, 7),
    (2, 1025),
    (2, 3, 4, 5),
    (33, 31),
    (5, 1, 1, 1, 513),
]
FULL = table(
    p=0.3, q=-1.7, a=0.93, c=1.04, b_new=0.2, e_new=-0.6, b={0: 0.4, 2: -0.3}, e={1: 0.7}, s={4: 0.5, 9: -0.2}, r={4: 0.1},
    store=3, in_scale=0.75,
)  # fmt: skip


def nan(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan"), dtype=dtype)


def values(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(found, wanted, dtype, terms=12.0):
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(float64(found), wanted, rtol=4 * eps, atol=terms * eps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", STATES)
def test_a_full_row_over_shapes(shape, dtype):
    """Everything a row can do at once; buffers that are only written hold NaN before."""
    batch, rest = shape[0], shape[1:]
    x, y = values(*shape, dtype=dtype), values(*shape, dtype=dtype, seed=1)
    slots = values(4, *shape, dtype=dtype, seed=2)
    slots[3] = float("nan")
    out = values(2 * batch, *rest, dtype=dtype, seed=3)
    seeds = torch.arange(batch) - 3
    guidance = torch.tensor([[2.5]], dtype=dtype)
    y_out, inp = nan(*shape, dtype=dtype), nan(3 * batch, *rest, dtype=dtype)
    branches = [out[:batch], out[batch:]]
    state, point, d = reference(x, FULL, branches, [2.5], y, slots, seeds)
    twin = pfc.ops.combine(x, FULL, 0, outs=[out], y=y, slots=list(slots), guidance=guidance, seeds=seeds)
    before = slots[:3].clone()
    pfc.ops.combine_(
        x, FULL, 0, out=out, y=y, y_out=y_out, inp=inp, slots=slots, guidance=guidance, seeds=seeds
    )
    close(x, state, dtype)
    close(y_out, point, dtype)
    close(slots[3], d, dtype)
    assert torch.equal(slots[:3], before)
    for copy in inp.split(batch) if batch else ():
        close(copy, 0.75 * point, dtype)
        assert torch.equal(copy, 0.75 * y_out)
    for mine, theirs in zip(twin, (x, y_out, slots[3]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("state", "out", "inp"), list(itertools.product(STATES, OUTS, OUTS)))
def test_dtypes(state, out, inp):
    """Outputs are read in any float dtype, inputs written in any, each rounded once."""
    x, c, u = values(3, 41, dtype=state), values(3, 41, dtype=out, seed=1), values(3, 41, dtype=out, seed=2)
    target, point = nan(6, 41, dtype=inp), nan(3, 41, dtype=state)
    row = table(q=0.8, a=0.97, b_new=0.21, e_new=0.4)
    guidance = torch.tensor([[3.0]], dtype=state)
    wanted, next_point, _ = reference(x, row, [c, u], [3.0])
    pfc.ops.combine_(x, row, 0, out=c, out2=u, y_out=point, inp=target, guidance=guidance)
    close(x, wanted, state)
    close(point, next_point, state)
    assert torch.equal(target[:3], point.to(inp))
    assert torch.equal(target[3:], point.to(inp))


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16])
def test_half_precision_is_at_most_twice_as_wrong_as_torch(out):
    """The rule for half precision: against float64, at most twice the error of plain PyTorch in that dtype."""
    x, c, u = (values(4, 4096, dtype=out, seed=k) for k in range(3))
    row = table(q=0.8, b_new=0.21)
    exact, _, _ = reference(x, row, [c, u], [3.0])
    state = x.float()
    pfc.ops.combine_(state, row, 0, out=c, out2=u, guidance=torch.tensor([[3.0]]))
    plain = x + 0.21 * (0.8 * (u + 3.0 * (c - u)))
    ours = np.abs(float64(state.to(out)) - exact).max()
    assert ours <= 2 * np.abs(float64(plain) - exact).max()


LAYOUTS = {
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "strided": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "flipped batch": lambda t: t.flip(0).contiguous()[[1, 0, *range(2, len(t))]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", OUTS)
def test_field_outputs_of_any_layout(layout, dtype):
    out = LAYOUTS[layout](values(4, 3, 6, 5, dtype=dtype))
    x, row = values(2, 3, 6, 5, seed=1), table(b_new=0.5)
    wanted, _, _ = reference(x, row, [out[:2], out[2:]], [1.7])
    for given in ({"out": out}, {"out": out[:2], "out2": out[2:]}):
        state = x.clone()
        pfc.ops.combine_(state, row, 0, guidance=torch.tensor([[1.7]]), **given)
        close(state, wanted, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_functional_twin_takes_any_layout(layout):
    x, y, slot, out = (LAYOUTS[layout](values(4, 3, 6, 5, seed=k)) for k in range(4))
    row = table(p=0.5, b_new=0.5, b={0: 0.25}, s={0: 1.0}, store=1)
    seeds = torch.tensor([5, 6, 7, 8])
    for found, wanted in zip(
        pfc.ops.combine(x, row, 0, outs=[out], y=y, slots=[slot], seeds=seeds),
        reference(x, row, [out], [], y, [slot], seeds),
        strict=True,
    ):
        close(found, wanted, torch.float32)


@pytest.mark.parametrize("branches", [2, 3, 5, 8])
@pytest.mark.parametrize("per_sample", [False, True])
def test_branches_and_their_scales(branches, per_sample):
    x, out = values(3, 37), values(branches * 3, 37, seed=1)
    scales = values(1, branches - 1, 3 if per_sample else 1, seed=2)
    row = table(b_new=0.5)
    wanted, _, _ = reference(x, row, out.split(3), scales[0].double().numpy())
    pfc.ops.combine_(x, row, 0, out=out, guidance=scales)
    close(x, wanted, torch.float32, 40)


@pytest.mark.parametrize("sample", [1, 5, 64, 1000])
def test_guidance_scale_of_each_sample(sample):
    """Segments of samples begin anywhere in a vector."""
    batch = 9
    x, out = values(batch, sample), values(2 * batch, sample, seed=1)
    scale = values(1, batch, seed=2)
    row = table(b_new=0.5)
    wanted, _, _ = reference(x, row, [out[:batch], out[batch:]], [scale[0].double().numpy()])
    pfc.ops.combine_(x, row, 0, out=out, guidance=scale)
    close(x, wanted, torch.float32, 30)


def test_equal_branches_are_that_branch_at_any_scale():
    x, c = values(2, 100), values(2, 100, seed=1)
    plain, guided = x.clone(), x.clone()
    row = table(b_new=0.5)
    pfc.ops.combine_(plain, row, 0, out=c)
    pfc.ops.combine_(guided, row, 0, out=torch.cat([c, c]), guidance=torch.tensor([[7.3]]))
    assert torch.equal(plain, guided)


@pytest.mark.parametrize("sample", [7, 4096, 700_000])
def test_the_state_may_be_the_first_half_of_the_input(sample):
    inp = values(4, sample)
    x = inp[:2]
    separate, out = x.clone(), values(4, sample, seed=1)
    guidance, row = torch.tensor([[2.0]]), table(b_new=0.1)
    pfc.ops.combine_(separate, row, 0, out=out, guidance=guidance)
    pfc.ops.combine_(x, row, 0, out=out, inp=inp[2:], guidance=guidance)
    assert torch.equal(inp, torch.cat([separate, separate]))


@pytest.mark.parametrize("sample", [7, 1025, 700_000])
def test_a_field_may_return_its_input(sample):
    inp = values(4, sample)
    out, row, guidance = inp.clone(), table(c=0.9, b_new=0.1, e_new=0.3), torch.tensor([[2.0]])
    x = inp[:2].clone()
    wanted, target = x.clone(), nan(4, sample)
    pfc.ops.combine_(wanted, row, 0, out=out, inp=target, guidance=guidance)
    pfc.ops.combine_(x, row, 0, out=inp, inp=inp, guidance=guidance)
    assert torch.equal(x, wanted)
    assert torch.equal(inp, target)


@pytest.mark.parametrize("inp", OUTS)
@pytest.mark.parametrize("sample", [700_001, 700_032])
def test_large_buffers_stream_past_the_cache_to_the_same_bits(inp, sample):
    """Above some megabytes written-only buffers take another kind of store; a small slice says what they must hold."""
    row = table(q=0.8, a=0.97, b_new=0.21, e_new=0.4, c=1.01, s={1: 0.1}, store=0)
    x, out = values(3, sample), values(6, sample, seed=1)
    seeds, scale = torch.tensor([1, 2, 3]), torch.tensor([[2.0, 1.0, -0.5]])
    small = [t.clone() for t in (x, out.view(2, 3, sample))]
    buffers = nan(3, sample), nan(6, sample, dtype=inp), nan(1, 3, sample)
    pfc.ops.combine_(
        x, row, 0, out=out, y_out=buffers[0], inp=buffers[1], slots=buffers[2], seeds=seeds, guidance=scale
    )
    for i in range(3):
        state, branches = small[0][i : i + 1].contiguous(), small[1][:, i].contiguous()
        got = pfc.ops.combine(
            state, row, 0, outs=[branches], seeds=seeds[i : i + 1], guidance=scale[:, i : i + 1]
        )
        assert torch.equal(got[0][0], x[i])
        assert torch.equal(got[1][0], buffers[0][i])
        assert torch.equal(got[2][0], buffers[2][0, i])
        assert torch.equal(got[1][0].to(inp), buffers[1][i])
        assert torch.equal(got[1][0].to(inp), buffers[1][3 + i])


def test_a_row_that_only_moves_the_point_leaves_the_state_alone():
    x, out, y_out = values(2, 50), values(2, 50, seed=1), nan(2, 50)
    before = x.clone()
    pfc.ops.combine_(x, table(e_new=0.5), 0, out=out, y_out=y_out)
    assert torch.equal(x, before)
    close(y_out, float64(before) + 0.5 * float64(out), torch.float32)


def test_a_zero_coefficient_reads_nothing():
    """NaN in a state that a = 0 drops, or in a slot that nothing reads, does not spread."""
    x, slots = nan(2, 70), nan(2, 2, 70)
    slots[1] = 4.0
    pfc.ops.combine_(x, table(a=0.0, b_new=0.5, b={1: 0.25}), 0, out=torch.ones(2, 70), slots=slots)
    assert torch.equal(x, torch.full((2, 70), 1.5))


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 5e-8), (torch.float64, 1e-16)])
def test_an_update_near_one_keeps_the_digits_of_a_minus_one(dtype, tiny):
    """1 + tiny rounds to 1, and so does a x + tiny; x + ((a - 1) x + tiny) is the next number."""
    row = table(b_new=tiny)
    row[0, R["a_minus_1"]] = tiny
    x = torch.ones(1, 70, dtype=dtype)
    pfc.ops.combine_(x, row, 0, out=torch.ones_like(x))
    assert torch.equal(x, torch.full_like(x, 1 + torch.finfo(dtype).eps))
