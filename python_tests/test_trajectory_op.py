"""The compiled trajectory operator: its bits are those of a loop over the operators, for every solver family."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pyflowcore as pfc
from pyflowcore import _core, _library
from pyflowcore.network import forward
from pyflowcore.plans import Plan
from pyflowcore.program import program_of
from reference import stochastic
from reference.random_networks import Packed, pack, random_network

pytestmark = pytest.mark.skipif(_library.cpu.handle is None, reason="there are no compiled kernels")

GRID = [0.0, 0.1, 0.3, 0.35, 0.7, 1.0]
PLANS = {name: pfc.plan(name, grid=GRID) for name in pfc.solvers()}
PLANS |= {
    name: Plan.from_dict(stochastic.describe(name, torch.linspace(0.1, 0.9, 6).double().numpy()))
    for name in stochastic.BUILDERS
}
R = _core.record
run = torch.ops.pyflowcore.trajectory
network = torch.ops.pyflowcore.network
combine_ = torch.ops.pyflowcore.combine_


def branches_of(table: Tensor, most: int, interval: tuple[float, float] = (0.05, 0.6)) -> Tensor:
    """All branches inside the interval, the first outside; none where nothing is evaluated."""
    inside = (table[:, R["t"]] >= interval[0]) & (table[:, R["t"]] <= interval[1])
    counts = torch.where(inside, most, 1)
    return torch.where(table[:, R["evaluates"]] != 0, counts, 0).long()


def loop(
    x0: Tensor, times: Tensor, cond: Tensor | None, net: Packed, table: Tensor, branches: Tensor, guidance: Tensor | None,
    seeds: Tensor | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
    """The same row by row, in buffers that share nothing."""
    batch = x0.shape[0]
    x, y, inp = x0.clone(), x0.clone(), x0.clone()
    slots = torch.zeros(R["max_slots"], *x0.shape, dtype=x0.dtype)
    states, points = [], []
    for row in range(len(table)):
        outs = []
        count = int(branches[row])
        for j in range(count):
            c = None if cond is None else cond[j * batch : (j + 1) * batch]
            outs.append(network(inp, times[row].expand(batch).contiguous(), c, *net))
        if count:
            points.append(y.clone())
        out = torch.cat(outs) if outs else None
        after, scaled = torch.empty_like(y), torch.empty_like(y)
        combine_(x, y, after, scaled, slots, out, None, guidance, seeds, table, row)
        y, inp = after, scaled
        states.append(x.clone())
    return x, states, points


def random_scales(rows: int, branches: int, batch: int, dtype: torch.dtype) -> Tensor:
    return 1.5 + torch.rand(
        rows, branches - 1, batch, dtype=dtype, generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_of_the_loop(name, dtype, poison):
    """With branches, a scale per sample, in_scale, and noise where the plan draws it."""
    table = program_of(PLANS[name], 1).table
    batch, dim, most = 29, 5, 3
    net = pack(random_network(dim, (32, 17), "silu", conditions=4, features=5), dtype)
    x0 = pfc.randn(range(batch), (dim,), dtype=dtype)
    cond = pfc.randn(range(most * batch), (4,), dtype=dtype, stream=9)
    seeds = torch.arange(batch) + 7
    times = table[:, R["t"]].contiguous() * 0.9 + 0.05
    branches = branches_of(table, most)
    guidance = random_scales(len(table), most, batch, dtype)
    keep = torch.arange(0, len(table), 2)
    kept = x0.clone()
    x, states, points = run(x0, times, cond, *net, table, branches, guidance, seeds, keep, True)
    wanted, each, evaluated = loop(x0, times, cond, net, table, branches, guidance, seeds)
    assert torch.equal(x0, kept)
    assert torch.isfinite(x).all()
    assert torch.equal(x, wanted)
    assert torch.equal(states, torch.stack(each)[keep])
    assert torch.equal(points, torch.stack(evaluated))


def call(
    net: Packed, x0: Tensor, plan: Plan, *, cond: Tensor | None = None, guidance: Tensor | None = None, most: int = 1,
    seeds: Tensor | None = None,
) -> Tensor:  # fmt: skip
    table = program_of(plan, 1).table
    times = table[:, R["t"]].contiguous()
    return run(x0, times, cond, *net, table, branches_of(table, most), guidance, seeds, None, False)[0]


@pytest.fixture(params=_library.cpu_isas())
def isa(request) -> Iterator[str]:
    before = pfc.cpu_isa()
    pfc.select_cpu_isa(request.param)
    yield request.param
    pfc.select_cpu_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 33])
def test_alone_as_in_any_batch(isa, dim, dtype):
    """Guided, with noise: every sample's bits are its own."""
    plan, batch, most = pfc.plan("stochastic_heun", grid=GRID), 150, 2
    net = pack(random_network(dim, (40, 64), "gelu", conditions=3, features=3, residuals=True), dtype)
    x0, seeds = pfc.randn(range(batch), (dim,), dtype=dtype), torch.arange(batch)
    cond = pfc.randn(range(most * batch), (3,), dtype=dtype, stream=9).reshape(most, batch, 3)
    guidance = random_scales(len(plan.facts), most, batch, dtype)

    def sample(first: int, last: int) -> Tensor:
        part = slice(first, last)
        return call(
            net, x0[part], plan, cond=cond[:, part].flatten(0, 1), guidance=guidance[..., part].contiguous(), most=most,
            seeds=seeds[part],
        )  # fmt: skip

    whole = sample(0, batch)
    for first, last in [(0, 1), (149, 150), (5, 7), (3, 8), (20, 26), (100, 147)]:
        assert torch.equal(sample(first, last), whole[first:last]), (first, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_threads(dtype):
    net, plan = pack(random_network(2, (64, 64)), dtype), pfc.plan("heun", 8)
    x0 = pfc.randn(range(1001), (2,), dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call(net, x0, plan))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["euler", "rk4", "ab4", "dpmpp_3m", "unipc"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "softplus"])
def test_against_a_plain_loop(isa, name, activation):
    """Float64 to 1e-12 of plain PyTorch; float32 at most twice as far from it."""
    net, plan = random_network(3, (64, 48), activation, features=9), pfc.plan(name, grid=GRID)
    table, batch = program_of(plan, 1).table, 64
    x0 = pfc.randn(range(batch), (3,))

    def plain(dtype: torch.dtype, weights: torch.dtype) -> Tensor:
        params, layers, features = pack(net, weights)
        x, slots = x0.to(dtype), [x0.to(dtype)] * max(plan.slots, 1)
        y, scale = None, 1.0
        for row, facts in enumerate(plan.facts):
            point = scale * (x if y is None else y)
            t = torch.full((batch,), plan.row_times[row], dtype=torch.float64)
            outs = [forward(point, t, None, params.to(dtype), layers, features)] if facts.evaluates else []
            x, y, d = pfc.ops.combine(x, table, row, outs=outs, y=y, slots=slots)
            slots = [d if k == facts.store else slot for k, slot in enumerate(slots)]
            scale = facts.in_scale
        return x

    found = call(pack(net), x0.double(), plan)
    torch.testing.assert_close(found, plain(torch.float64, torch.float64), rtol=1e-12, atol=1e-12)
    truth = plain(torch.float64, torch.float32)
    error = (call(pack(net, torch.float32), x0, plan) - truth).square().mean().sqrt()
    loops = (plain(torch.float32, torch.float32) - truth).square().mean().sqrt()
    assert error <= 2 * loops, (error, loops)


def test_nothing_to_do():
    """No samples, no rows, rows that evaluate nothing, a row whose q is 0."""
    net, plan = pack(random_network(3, (20,)), torch.float32), pfc.plan("euler", 4)
    assert call(net, torch.empty(0, 3), plan).shape == (0, 3)
    x0 = pfc.randn(range(5), (3,))
    none = plan.table[:0]
    x, states, points = run(
        x0, torch.empty(0).double(), None, *net, none, torch.empty(0).long(), None, None, None, True
    )
    assert torch.equal(x, x0) and x.data_ptr() != x0.data_ptr()
    assert states.shape == points.shape == (0, 5, 3)
    table = plan.table.clone()
    table[:, R["evaluates"]] = 0.0
    table[:, R["b_new"]] = 0.0
    idle = torch.zeros(4).long()
    x, _, points = run(x0, plan.row_times, None, *net, table, idle, None, None, None, True)
    assert torch.equal(x, x0) and points.shape == (0, 5, 3)
    table = plan.table.clone()
    table[:, R["q"]] = 0.0
    assert torch.equal(run(x0, plan.row_times, None, *net, table, idle, None, None, None, False)[0], x0)


def test_what_the_kernel_refuses():
    """The checks that protect memory, beneath those of pfc.ops."""
    net = pack(random_network(3, (20,), conditions=2), torch.float32)
    plan = pfc.plan("ab2", 4)
    x0, cond, times, table = pfc.randn(range(4), (3,)), torch.zeros(8, 2), plan.row_times, plan.table
    rows = len(table)
    both, one = torch.full((rows,), 2), torch.ones(rows).long()
    scale, seeds = torch.ones(rows, 1), torch.arange(4)

    def changed(row: int, column: str, value: float, offset: int = 0) -> Tensor:
        new = table.clone()
        new[row, R[column] + offset] = value
        return new

    good = [x0, times, cond, *net, table, both, scale, seeds, None, False]
    run(*good)
    cases = {
        r"times must be contiguous Double of shape \[4\]": {1: times[:3]},
        r"cond has 7 rows, no multiple of the batch 4": {2: cond[:7]},
        r"row 0 has 2, cond has 1 stacked": {2: cond[:4]},
        r"branches must be contiguous Long": {7: both.int()},
        r"branches: row 0 has 9": {7: torch.full((rows,), 9)},
        r"branches: row 0 needs the network's output": {7: 0 * one},
        r"guidance: row 0 has 2 branches": {8: None},
        r"guidance must have shape \[4, 1 or 4\]": {8: scale[:3]},
        r"guidance has dtype Double": {8: scale.double()},
        r"guidance has 2 scales in a row": {8: torch.ones(rows, 2, 1)},
        r"seeds must have shape \[4\]": {9: seeds[:3]},
        r"keep_rows: entry 1 is 1": {10: torch.tensor([2, 1])},
        r"keep_rows: entry 0 is 4": {10: torch.tensor([4])},
        r"row 0 reads slot 3, which no row before it writes": {6: changed(0, "b", 1.0, 3)},
        r"row 1 stores into slot 16": {6: changed(1, "store", 16.0)},
        r"row 1 has a coefficient that is not finite": {6: changed(1, "a", torch.nan)},
        r"row 1 has a coefficient that is not finite in": {6: changed(1, "b_new", 1e39)},
        r"table must be contiguous float64 of shape": {6: table[:, :55]},
    }
    for message, changes in cases.items():
        arguments = [changes.get(i, value) for i, value in enumerate(good)]
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)
    noisy = pfc.plan("euler_maruyama", 4)
    with pytest.raises(RuntimeError, match="seeds: row 0 draws noise"):
        run(
            x0,
            noisy.row_times,
            cond,
            *net,
            noisy.table,
            torch.ones(len(noisy.table)).long(),
            None,
            None,
            None,
            False,
        )
