"""network_divergence and trajectory_log_prob: against dense Jacobians, against the loop over rows, bits, refusals, opcheck."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library, network
from pyflowcore.likelihood import fixed
from pyflowcore.likelihood.divergence import Trace
from reference.random_networks import pack, random_network

F64 = torch.float64
ISAS = _library.cpu_isas()


def normals(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(net, x, t, cond, probes=None):
    """(output, traces) from the dense Jacobian of the plain network, in float64."""
    packed = pack(net)
    flat, times = x.double().reshape(len(x), -1), t.expand(len(x))
    given = (flat, times) if cond is None else (flat, times, cond.double())

    def one(at, time, *c):
        out = network.forward(at[None], time[None], c[0][None] if c else None, *packed)[0]
        return out, out

    own, out = torch.func.vmap(torch.func.jacrev(one, has_aux=True))(*given)
    out = out.reshape(x.shape)
    if probes is None:
        return out, own.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    v = probes.double().reshape(len(probes), len(x), -1)
    return out, torch.einsum("kbi,bij,kbj->bk", v, own, v)


CASES = [
    # dim, widths, further
    (1, [], {}),
    (5, [], {}),
    (2, [16], {}),
    (3, [17, 5], {"conditions": 2, "features": 3}),
    (8, [64, 64, 64], {"residuals": True}),
    (7, [33, 33, 33, 33], {"residuals": True, "after": "tanh", "features": 0}),
    (20, [16, 40], {"conditions": 1}),
    (130, [24], {}),
    (4, [200, 9], {"after": "silu"}),
]


@pytest.mark.parametrize("dim, widths, further", CASES)
@pytest.mark.parametrize("batch, probes", [(1, None), (3, 5), (40, None), (40, 1)])
def test_against_dense_jacobians(dim, widths, further, batch, probes):
    net = random_network(dim, widths, **further)
    x, t = normals(batch, dim), torch.linspace(0.0, 1.0, batch, dtype=F64)
    cond = normals(batch, further["conditions"], seed=1) if further.get("conditions") else None
    v = None if probes is None else normals(probes, batch, dim, seed=2)
    for times in (t, t[:1].reshape(())):
        found, traces = pfc.ops.network_divergence(x, times, cond, *pack(net), v)
        wanted, expected = dense(net, x, times, cond, v)
        assert (found - wanted).abs().max() < 1e-12 * (1 + wanted.abs().max())
        assert (traces - expected).abs().max() < 1e-12 * (1 + expected.abs().max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", network.ACTIVATIONS)
def test_every_activation(activation, isa):
    """float64 to rounding, float32 no worse than twice the plain version in float32."""
    before = _library.cpu_isa()
    _library.select_cpu_isa(isa)
    try:
        net = random_network(6, [21, 21, 21], activation, residuals=True, after=activation)
        x, t = 2.0 * normals(9, 6), torch.tensor(0.3, dtype=F64)
        wanted, expected = dense(net, x, t, None)
        found, traces = pfc.ops.network_divergence(x, t, None, *pack(net))
        assert (found - wanted).abs().max() < 1e-12 and (traces - expected).abs().max() < 1e-11
        single = pack(net, torch.float32)
        wanted, expected = dense(net, x.float(), t, None)
        found, traces = pfc.ops.network_divergence(x.float(), t, None, *single)
        # The weights are rounded too, so plain float32 is the measure.
        plain = Trace(None)(lambda at, t: network.forward(at, t, None, *single), x.float(), t, {})
        for value, other, exact in ((found, plain[0], wanted), (traces, plain[1], expected)):
            assert (value - exact).abs().max() <= 2.0 * (other - exact).abs().max() + 2e-6 * exact.abs().max()
    finally:
        _library.select_cpu_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("isa", ISAS)
def test_bits(dtype, isa):
    """The output has the bits of `network`; no number depends on the batch, its order, the chunk or the time's shape."""
    before = _library.cpu_isa()
    _library.select_cpu_isa(isa)
    try:
        for dim, probes in ((8, None), (50, None), (8, 30)):
            net = random_network(dim, [40, 40], "tanh", conditions=2, residuals=True)
            packed = pack(net, dtype)
            x, cond = normals(70, dim, dtype=dtype), normals(70, 2, seed=1, dtype=dtype)
            v = None if probes is None else normals(probes, 70, dim, seed=2, dtype=dtype)
            t = torch.tensor(0.4, dtype=F64)
            out, traces = pfc.ops.network_divergence(x, t, cond, *packed, v)
            assert torch.equal(out, pfc.ops.network(x, t, cond, *packed))
            spread = pfc.ops.network_divergence(x, t.expand(70), cond, *packed, v)
            assert torch.equal(spread[0], out) and torch.equal(spread[1], traces)
            for rows in (slice(3, 4), slice(10, 17), slice(0, 70, 3)):
                part = pfc.ops.network_divergence(
                    x[rows], t, cond[rows], *packed, None if v is None else v[:, rows]
                )
                assert torch.equal(part[0], out[rows]) and torch.equal(part[1], traces[rows])
            if v is not None:
                fewer = pfc.ops.network_divergence(x, t, cond, *packed, v[4:7])
                assert torch.equal(fewer[1], traces[:, 4:7])
    finally:
        _library.select_cpu_isa(before)


def test_states_of_any_shape():
    net = random_network(12, [20])
    x = normals(5, 2, 3, 2).transpose(1, 3)
    v = normals(2, 5, 2, 3, 2, seed=1)
    t = torch.tensor(0.1, dtype=F64)
    for probes in (None, v):
        out, traces = pfc.ops.network_divergence(x, t, None, *pack(net), probes)
        flat = None if probes is None else probes.flatten(2)
        wanted, expected = dense(net, x, t, None, flat)
        assert out.shape == x.shape and (out - wanted).abs().max() < 1e-12
        assert (traces - expected).abs().max() < 1e-12


@pytest.mark.parametrize("batch", [0, 2])
def test_empty(batch):
    net = random_network(3, [4])
    out, traces = pfc.ops.network_divergence(
        torch.zeros(batch, 3), torch.tensor(0.5), None, *pack(net, torch.float32)
    )
    assert out.shape == (batch, 3) and traces.shape == (batch, 1)


BACK = pfc.grids.uniform().reversed()
PLANS = {
    "euler": pfc.plan("euler", 3, grid=BACK),
    "rk4": pfc.plan("rk4", 3, grid=BACK),
    "dopri5": pfc.plan("dopri5", 2, last="full"),
    "ab4": pfc.plan("ab4", 6, start="single"),
    "heun": pfc.plan("heun", 3),
    "data": pfc.plan("rk4", prediction="data", grid=[0.1, 0.4, 0.9]),
    "scaled": pfc.plan("midpoint", 3, prediction=pfc.Scaled("velocity", lambda t: 1.0 + t)),
    "other path": pfc.plan("heun", path="vp", along="linear", grid=[0.9, 0.5, 0.2]),
}


def field_of(net, plan, dtype, cond):
    packed = pack(net, dtype)
    call = lambda x, t: network.forward(x, t, cond, *packed)  # noqa: E731
    return pfc.Field(call, prediction=plan.prediction, path=plan.path, time_dtype=F64)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("probes", [None, 3])
def test_a_plan_is_the_loop_over_its_rows(name, probes):
    plan, batch = PLANS[name], 20
    net = random_network(5, [30, 30], "gelu", conditions=1, features=3, residuals=True)
    x, cond = normals(batch, 5), normals(batch, 1, seed=1)
    v = None if probes is None else normals(probes, batch, 5, seed=2)
    branches = (plan.table[:, 1] != 0.0).long()
    found, change = pfc.ops.trajectory_log_prob(
        x, plan.row_times, plan.table, branches, *pack(net), cond=cond, probes=v
    )
    wanted, expected = fixed.integrate(plan, field_of(net, plan, F64, cond), x, {}, Trace(v))
    assert (found - wanted).abs().max() < 1e-12 * (1 + wanted.abs().max())
    assert (change - expected).abs().max() < 1e-12 * (1 + expected.abs().max())
    # Single precision: the state's bits are those of `trajectory`.
    single = pack(net, torch.float32)
    small = (x.float(), plan.row_times, plan.table, branches, *single)
    found, change = pfc.ops.trajectory_log_prob(
        *small, cond=cond.float(), probes=None if v is None else v.float()
    )
    assert torch.equal(found, pfc.ops.trajectory(*small, cond=cond.float())[0])
    assert change.dtype == F64 and (change - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("threads", [1, 2])
def test_trajectories_do_not_depend_on_the_batch(threads):
    plan = PLANS["dopri5"]
    net, branches = random_network(8, [64, 64]), torch.ones(len(plan.facts), dtype=torch.int64)
    x, packed = normals(3000, 8, dtype=torch.float32), pack(net, torch.float32)
    had = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = pfc.ops.trajectory_log_prob(x, plan.row_times, plan.table, branches, *packed)
        part = pfc.ops.trajectory_log_prob(x[5:6], plan.row_times, plan.table, branches, *packed)
        assert torch.equal(part[0], whole[0][5:6]) and torch.equal(part[1], whole[1][5:6])
    finally:
        torch.set_num_threads(had)


def arguments(**changes):
    plan, net = PLANS["euler"], random_network(3, [4])
    packed = pack(net, torch.float32)
    given = {
        "x0": torch.zeros(2, 3), "times": plan.row_times, "table": plan.table, "branches": torch.ones(3, dtype=torch.int64),
        "params": packed.params, "layers": packed.layers, "features": packed.features, "probes": None, "cond": None,
    }  # fmt: skip
    return {**given, **changes}


def test_opcheck():
    given = arguments()
    packed = (given["params"], given["layers"], given["features"])
    point = (torch.zeros(2, 3), torch.tensor(0.5), None, *packed, torch.ones(4, 2, 3))
    torch.library.opcheck(torch.ops.pyflowcore.network_divergence.default, point)
    path = (given["x0"], given["times"], None, *packed, given["table"], given["branches"], None)
    torch.library.opcheck(torch.ops.pyflowcore.trajectory_log_prob.default, path)


SDE = pfc.plan("euler_maruyama", 3, grid=[0.1, 0.4, 0.6, 0.9]).table
DATA = pfc.plan("dpmpp_2m", 3)
REFUSED = {
    "probes' shape": ({"probes": torch.zeros(2, 3)}, ["probes", "[2, 3]"]),
    "probes' batch": ({"probes": torch.zeros(1, 3, 3)}, ["probes", "[1, 3, 3]"]),
    "probes' dtype": ({"probes": torch.zeros(1, 2, 3, dtype=F64)}, ["probes", "float64", "float32"]),
    "scales": ({"table": DATA.table}, ["table", "scales"]),
    "noise": ({"table": SDE}, ["", "noise"]),
    "branches": ({"branches": torch.zeros(3, dtype=torch.int64)}, ["branches", "0"]),
    "cond": ({"cond": torch.zeros(2, 1)}, ["layers"]),
    "times": ({"times": torch.zeros(2, dtype=F64)}, ["times", "[2]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("raw", [False, True])
def test_refusals(name, raw):
    """By the readable face, and by the kernel where it is called without."""
    changes, words = REFUSED[name]
    given = arguments(**changes)
    order = ("x0", "times", "cond", "params", "layers", "features", "table", "branches", "probes")
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        if raw:
            torch.ops.pyflowcore.trajectory_log_prob(*[given[name] for name in order])
        else:
            pfc.ops.trajectory_log_prob(**given)
    message = str(caught.value)
    assert words[0] in message, message
    assert raw or all(word in message for word in words), message
