"""The compiled trajectory operator: its bits are those of a loop over the operators, for every solver family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyflowcore as pfc
from pyflowcore import _core, _library
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
