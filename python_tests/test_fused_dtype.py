"""The module behind a fused field in another dtype than its own: the module is not touched, and its gradients are right."""

from __future__ import annotations

import copy
import functools
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore.fuse.skeleton import in_dtype

pytestmark = pytest.mark.usefixtures("one_thread")
F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2))


def test_threads_in_two_dtypes():
    """Some run the module in float64, others in its own float32: all get the right values and gradients."""
    net = small()
    field = pfc.fuse(net)
    parameters = list(net.parameters())
    x, t = torch.randn(5, 2), torch.rand(5)
    rows = torch.cat([x, t[:, None]], -1)
    other = copy.deepcopy(net).double()
    value = other(rows.double())
    gradients = torch.autograd.grad(value.sum(), list(other.parameters()))
    plain = net(rows).detach()
    wrong: list[str] = []

    def in_float64() -> None:
        for _ in range(40):
            out = field(x.double(), t)
            found = torch.autograd.grad(out.sum(), parameters)
            if not torch.allclose(out, value, rtol=1e-12, atol=1e-12):
                wrong.append("a value")
            if not all(
                torch.allclose(a.double(), b, rtol=1e-6, atol=1e-6)
                for a, b in zip(found, gradients, strict=True)
            ):
                wrong.append("a gradient")

    def as_it_is() -> None:
        for _ in range(120):
            with torch.no_grad():
                if not torch.equal(net(rows), plain):
                    wrong.append("the module's own value")
            if [id(p) for p in net.parameters()] != [id(p) for p in parameters]:
                wrong.append("the module's own parameters")

    def guarded(work) -> None:
        try:
            work()
        except Exception as error:
            wrong.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=guarded, args=(work,)) for work in (in_float64, in_float64, as_it_is)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_the_module_is_untouched_while_it_runs():
    """Seen from inside its own forward."""

    class Watching(nn.Module):
        seen: list[torch.dtype]

        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(net.net[0].weight.dtype)
            return self.net(torch.cat([x, t[:, None]], -1))

    seen: list[torch.dtype] = []
    net = Watching()
    field = pfc.fuse(net)
    seen.clear()
    assert field(torch.randn(4, 2, dtype=F64), torch.rand(4)).requires_grad
    assert seen == [torch.float32]


class Everything(nn.Module):
    """Tied weights, a parametrization, plain tensors, lists, bound methods, partials, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(3, 8))
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.tables = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(2)])
        self.plain, self.listed = torch.randn(8), [torch.randn(8), {"bias": torch.randn(8)}]
        self.register_buffer("scale", torch.rand(2))
        self.register_buffer("order", torch.arange(2))
        self.bound, self.part = self._end, functools.partial(F.linear, weight=nn.Parameter(torch.randn(8, 8)))
        self.last = nn.Linear(8, 2)
        self.heads = [self.last]
        self.calls: list[torch.dtype] = []
        self.last.register_forward_hook(lambda _, args, out: self.calls.append(out.dtype))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(self.first(torch.cat([x, t[:, None]], -1)) * self.tables[0] + self.plain)
        h = torch.tanh(
            self.b(torch.tanh(self.a(h))) + self.listed[0] + self.listed[1]["bias"] + self.tables[1]
        )
        return self.bound(self.part(h))

    def _end(self, h: Tensor) -> Tensor:
        return self.heads[0](h)[:, self.order] * self.scale


def test_all_that_modules_are_made_of():
    net = Everything()
    other = copy.deepcopy(net).double()
    other.plain, other.listed = (
        net.plain.double(),
        [net.listed[0].double(), {"bias": net.listed[1]["bias"].double()}],
    )
    other.part = functools.partial(F.linear, weight=net.part.keywords["weight"].detach().double())
    x, t = torch.randn(5, 2, dtype=F64, requires_grad=True), torch.rand(5, dtype=F64)
    skeleton = in_dtype(net, F64)
    assert skeleton.b.weight is skeleton.a.weight and skeleton.heads[0] is skeleton.last
    assert skeleton.order is net.order and type(skeleton) is Everything
    out = skeleton(x, t)
    assert net.calls == [F64]  # hooks stay what they are
    want = other(x, t)
    assert out.dtype == F64 and torch.allclose(out, want, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(out.square().sum(), [x, *net.parameters(), net.part.keywords["weight"]])
    wanted = torch.autograd.grad(want.square().sum(), [x, *other.parameters()])
    for a, b in zip(found, wanted, strict=False):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-6)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_call_with_gradients(fullgraph):
    net = small()
    field = pfc.fuse(net)
    x, t = torch.randn(4, 2, dtype=F64), torch.rand(4)
    want = torch.autograd.grad(field(x, t).sum(), list(net.parameters()))
    torch._dynamo.reset()
    out = torch.compile(field, backend="eager", fullgraph=fullgraph)(x, t)
    assert all(map(torch.equal, torch.autograd.grad(out.sum(), list(net.parameters())), want))
