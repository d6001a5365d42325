"""Adaptive solves of fused fields in one call: the bits of the loop over the operators, and of each sample alone."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library
from pyflowcore.adaptive_loop import Buffers, Problem
from pyflowcore.ops.adaptive import METHODS, _plain_network_solve

pytestmark = pytest.mark.skipif(not _library.cpu.live, reason="needs the compiled CPU kernels")
PARTS = ("x", "status", "reached", "nfe", "accepted", "rejected")


def mlp(inputs, dim, width=32):
    torch.manual_seed(inputs + width)
    linear, silu = torch.nn.Linear, torch.nn.SiLU
    net = torch.nn.Sequential(
        linear(inputs, width), silu(), linear(width, width), torch.nn.Tanh(), linear(width, dim)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    return net


def by_operators(fused, dtype):
    """The fused field's network as any other field."""

    def net(x, t, **cond):
        flat = fused.condition(cond, len(x), dtype)
        tables = (fused.params(dtype), fused.layers, fused.features)
        return torch.ops.pyflowcore.network(x, t, flat, *tables, 0)

    return pfc.Field(net, sign=fused.sign, time_dtype=torch.float64)


def same(a, b, at=None):
    for part in PARTS:
        mine, theirs = getattr(a, part), getattr(b, part)
        if at is not None:
            mine = mine[:, at] if part == "x" else mine[at]
        assert torch.equal(mine, theirs), part


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.8, 0.79, 0.0]])
@pytest.mark.parametrize("method", METHODS)
def test_the_bits_of_the_loop(method, times, dtype):
    """More samples than a tile holds, with conditions that make some of them slow."""
    fused = pfc.fuse(mlp(6, 2), ("x", "t", "c"), sizes={"c": 3}, sign=-1)
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(230, 2, generator=g, dtype=torch.float64).to(dtype)
    c = (torch.randn(230, 3, generator=g, dtype=torch.float64) * torch.linspace(0, 6, 230)[:, None]).to(dtype)
    whole = pfc.solve(fused, x0, times, method, 1e-4, 1e-4, {"c": c})
    assert (
        whole.engine == "one call"
        and whole.success.all()
        and int(whole.nfe.max()) > 1.5 * int(whole.nfe.min())
    )
    same(whole, pfc.solve(by_operators(fused, dtype), x0, times, method, 1e-4, 1e-4, {"c": c}))
    for i in (0, 100, 229):
        one = pfc.solve(fused, x0[i : i + 1], times, method, 1e-4, 1e-4, {"c": c[i : i + 1]})
        same(whole, one, slice(i, i + 1))


def test_threads_do_not_matter():
    fused, x0 = pfc.fuse(mlp(3, 2)), torch.randn(3000, 2, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(pfc.solve(fused, x0, [0.0, 1.0]))
    finally:
        torch.set_num_threads(before)
    same(*found)


def test_statuses():
    """Samples that are not finite, and a budget: none changes another."""
    fused = pfc.fuse(mlp(4, 3))
    x0 = torch.randn(150, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    free = pfc.solve(fused, x0, [0.0, 0.5, 1.0], "dop853", 1e-8, 1e-8)
    x0[7, 1] = torch.nan
    budget = int(free.nfe.float().median())
    found = pfc.solve(fused, x0, [0.0, 0.5, 1.0], "dop853", 1e-8, 1e-8, max_nfe=budget)
    assert found.status[7] == pfc.Status.NON_FINITE
    done = found.success
    assert 20 < int(done.sum()) < 150 and torch.equal(found.x[:, done], free.x[:, done])
    assert (found.status[~done & (torch.arange(150) != 7)] == pfc.Status.BUDGET).all()


def test_events_of_any_shape_and_none():
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(5, 4)

        def forward(self, x, t):
            return self.net(torch.cat([x.flatten(1), t[:, None]], 1)).reshape(x.shape)

    fused = pfc.fuse(Square(), shape=(2, 2))
    x0 = torch.randn(3, 2, 2)
    assert pfc.solve(fused, x0, [0.0, 1.0]).x.shape == (2, 3, 2, 2)
    assert pfc.solve(fused, x0[:0], [0.0, 1.0]).x.shape == (2, 0, 2, 2)


@pytest.mark.parametrize("how, why", [
    ({"rounds": 50}, "rounds are given"), ({"enable_grad": True}, "gradients are wanted"),
])  # fmt: skip
def test_what_runs_is_said(how, why):
    fused, x0 = pfc.fuse(mlp(3, 2)), torch.randn(4, 2)
    assert pfc.solve(fused, x0, [0.0, 1.0], **how).engine == f"batched loop: {why}"
    mapped = pfc.fuse(mlp(3, 2), time=lambda t: 1 - t)
    found = pfc.solve(mapped, x0, [0.0, 1.0])
    assert found.engine == "batched loop: the field maps times"
    assert pfc.solve(lambda x, t: -x, x0, [0.0, 1.0]).engine == "batched loop: the field is not fused"


@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_the_plain_version_and_opcheck():
    """The operator's loop in plain PyTorch has the kernel's bits, since its parts have."""
    fused = pfc.fuse(mlp(3, 2))
    x0 = torch.randn(20, 2, dtype=torch.float64)
    times, one = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), torch.tensor(1e-5, dtype=torch.float64)
    problem = Problem(fused, x0, times, "dop853", one, one, {}, 10_000, 0.0, False, None, 2)

    def arguments():
        b = Buffers(problem)
        tables = (fused.params(x0.dtype), fused.layers, fused.features)
        return b.x, b.clock, b.counts, b.rows, None, *tables, b.times, b.table, b.slots, 2, 10_000, 1.0

    kernel, plain = arguments(), arguments()
    torch.ops.pyflowcore.network_solve_(*kernel)
    _plain_network_solve(*plain)
    for a, b in ((kernel[0], plain[0]), (kernel[2][:, :7], plain[2][:, :7]), (kernel[3][1:], plain[3][1:])):
        assert torch.equal(a, b)
    torch.library.opcheck(torch.ops.pyflowcore.network_solve_.default, arguments(), test_utils="test_schema")
    torch.library.opcheck(
        torch.ops.pyflowcore.network_solve_.default, arguments(), test_utils="test_faketensor"
    )
