"""Solves of fields that return their own arguments, of shared conditions, of long intervals and large numbers; capture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyflowcore as pfc
from pyflowcore import adaptive_loop, solving
from pyflowcore.ops import _plain_adaptive
from pyflowcore.ops.adaptive import METHODS

DOUBLE = torch.float64


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_a_field_may_return_its_own_argument(monkeypatch, method, plain):
    """t, a view of it, x, and a part of x's memory; dx/dt = t is exact: x = t^2 / 2."""
    if plain:
        monkeypatch.setattr(adaptive_loop, "_adaptive_", _plain_adaptive.adaptive_)
        monkeypatch.setattr(solving, "runs_in_lockstep", lambda problem: False)
    zero = torch.zeros(3, 1, dtype=DOUBLE)
    fields = {
        "t": (zero[:, 0], lambda x, t: t, lambda x, t: t * 1),
        "view": (zero, lambda x, t: t[:, None], lambda x, t: t[:, None] * 1),
        "x": (torch.arange(1.0, 4, dtype=DOUBLE), lambda x, t: x, lambda x, t: x * 1),
    }
    for name, (x0, alias, fresh) in fields.items():
        found, right = (pfc.solve(f, x0, [0.0, 0.3, 1.0], method) for f in (alias, fresh))
        assert torch.equal(found.x, right.x) and torch.equal(found.nfe, right.nfe), name
        if name != "x":
            torch.testing.assert_close(found.x[-1], torch.full_like(x0, 0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", range(1, 8))
def test_compact_leaves_shared_tensors_alone(length):
    """A tensor of all samples whose length the shrunken batch comes to have."""

    def field(x, t, rate, w):
        assert len(w) == length
        return -rate[:, None] * x + 0.1 * w.sum()

    rate = torch.tensor([0.1, 1, 3, 10, 30, 100, 300, 1000], dtype=DOUBLE)
    cond, x0 = (
        {"rate": rate, "w": torch.arange(1.0, length + 1, dtype=DOUBLE)},
        torch.ones(8, 2, dtype=DOUBLE),
    )
    whole, small = (pfc.solve(field, x0, [0.0, 1.0], cond=cond, compact=c) for c in (False, True))
    assert torch.equal(whole.x, small.x)


def test_compact_never_evaluates_an_empty_batch(monkeypatch):
    """A device's number is old: by the time that it asks for a shrunken batch, all may have finished."""
    init = adaptive_loop._Watch.__init__

    def as_on_a_device(self, *args):
        init(self, *args)
        self._value = None

    monkeypatch.setattr(adaptive_loop._Watch, "__init__", as_on_a_device)
    emptied = 0
    shrink = adaptive_loop.Buffers.shrink

    def counted(self, cond):
        nonlocal emptied
        found = shrink(self, cond)
        emptied += not len(self.y)
        return found

    monkeypatch.setattr(adaptive_loop.Buffers, "shrink", counted)

    def field(x, t, r):
        assert len(x)
        return torch.cos(r[:, None] * t[:, None]) * x * r[:, None]

    for fast in (0.5, 1.0, 2.0, 3.0):
        for slow in (3.0, 5.0, 8.0, 12.0, 20.0, 30.0):
            r = torch.tensor([fast] * 4 + [slow] * 4, dtype=DOUBLE)
            x0 = torch.ones(8, 2, dtype=DOUBLE)
            assert pfc.solve(field, x0, [0.0, 1.0], cond={"r": r}, compact=True).success.all()
    assert emptied


class _Devices(TorchDispatchMode):
    """The operators that see two devices, or copy to another than they read."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in (*args, *(kwargs or {}).values(), out) if isinstance(one, torch.Tensor)]
        devices = {one.device.type for one in tensors}
        if len(devices) > 1:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("method", METHODS)
def test_rounds_copy_nothing_between_devices(method):
    """On a device whose values cannot be looked at; the operator's table of the method is host memory."""
    x0 = torch.empty(3, 4, device="meta")
    t = torch.empty(3, dtype=DOUBLE, device="meta")
    with _Devices() as devices:
        found = pfc.solve(lambda x, t: -x * t[:, None], x0, t, method, rtol=1e-4, rounds=7, first_step=0.1)
    assert found.rounds == 7 and found.x.device.type == "meta"
    assert devices.found == ["pyflowcore.adaptive_.default"] * 7


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_a_stiff_start_of_a_long_interval_is_no_underflow(monkeypatch, plain):
    if plain:
        monkeypatch.setattr(adaptive_loop, "_adaptive_", _plain_adaptive.adaptive_)
        monkeypatch.setattr(solving, "runs_in_lockstep", lambda problem: False)
    x0 = torch.ones(1, 2, dtype=DOUBLE)
    for way in (1.0, -1.0):
        long = pfc.solve(
            lambda x, t, way=way: -1e8 * way * x, x0, [0.0, way * 1e10], rtol=1e-6, atol=1e-9, max_nfe=2000
        )
        assert int(long.status) == pfc.Status.BUDGET and abs(float(long.reached)) > 1e-6
    slow = pfc.solve(lambda x, t: -x, x0, [0.0, 1e12], max_nfe=500)
    assert int(slow.status) == pfc.Status.BUDGET
    # What cannot reach 0, or leave another time, still ends soon.
    wall = pfc.solve(lambda x, t: x / torch.where(t > 0, t, torch.nan)[:, None], x0, [1.0, 0.0])
    assert int(wall.status) == pfc.Status.NON_FINITE and int(wall.nfe) < 3000
    stuck = pfc.solve(
        lambda x, t: torch.where(t > 7, torch.nan, x[:, 0])[:, None].expand(x.shape), x0, [7.0, 9.0]
    )
    assert int(stuck.status) == pfc.Status.NON_FINITE and int(stuck.nfe) < 300


def test_sixteen_units_in_the_last_place():
    """The limit is that of t itself: 16 units at 3 are 32 epsilon, from t = 3 on steps of that length are tried."""
    eps = torch.finfo(DOUBLE).eps
    x0 = torch.zeros(1, 1, dtype=DOUBLE)
    just, below = (
        pfc.solve(lambda x, t: 0 * x, x0, [3.0, 4.0], first_step=size, max_nfe=100)
        for size in (32 * eps, 31.9 * eps)
    )
    assert just.success.all() and int(below.status) == pfc.Status.UNDERFLOW


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_large_finite_fields(monkeypatch, method, plain):
    """Norms whose squares would overflow; an infinite field is not finite still."""
    if plain:
        monkeypatch.setattr(adaptive_loop, "_adaptive_", _plain_adaptive.adaptive_)
        monkeypatch.setattr(solving, "runs_in_lockstep", lambda problem: False)
    x0 = torch.zeros(2, 3, dtype=DOUBLE)
    size = torch.tensor([1e160, torch.inf], dtype=DOUBLE)
    found = pfc.solve(
        lambda x, t, size: size[:, None] + 0 * x,
        x0,
        [0.0, 1.0],
        method,
        1e-3,
        1e-200,
        {"size": size},
        first_step=0.125,
    )
    assert found.status.tolist() == [pfc.Status.SUCCESS, pfc.Status.NON_FINITE]
    torch.testing.assert_close(found.x[-1, 0], torch.full((3,), 1e160, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_numbers_of_numpy():
    x0, right = torch.ones(2, 2), pfc.solve(lambda x, t: -x, torch.ones(2, 2), [0.0, 1.0], first_step=0.125)
    for kind in (np.float32, np.float64):
        found = pfc.solve(
            lambda x, t: -x, x0, [0.0, 1.0], rtol=kind(1e-5), atol=kind(1e-5), first_step=kind(0.125)
        )
        torch.testing.assert_close(found.x, right.x)
        assert torch.equal(found.nfe, right.nfe)
