"""Adaptive log-densities of fused fields in one call: the bits of the loop over the operators, closed forms, and failures."""

from __future__ import annotations

import pytest
import torch
from test_solve_fused import mlp, same
from torch.distributions import MultivariateNormal, Normal

import pyflowcore as pfc
from pyflowcore import _library
from pyflowcore.adaptive_loop import Buffers, Problem
from pyflowcore.likelihood.fused import FusedDensity, fused_trace
from pyflowcore.ops.adaptive import METHODS, _plain_network_solve_log_prob

pytestmark = pytest.mark.skipif(not _library.cpu.live, reason="needs the compiled CPU kernels")
F64 = torch.float64
ONE_CALL = "adaptive steps in one operator call; fused network, products inside its kernel"


def normals(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def conditioned(dim, sign=1):
    return pfc.fuse(mlp(dim + 4, dim), ("x", "t", "c"), sizes={"c": 3}, sign=sign)


def fields(fused, x, c, probes):
    """(the field that one call solves, the same by the operators and so for the loop), over [x, integrals]."""
    dim, cond = x[0].numel(), {} if c is None else {"c": c}
    trace = fused_trace(fused, x, cond, probes, False)
    tables = (fused.params(x.dtype), fused.layers, fused.features)
    flat = fused.condition(cond, len(x), x.dtype)

    def both(z, t):
        point = z[:, :dim].to(x.dtype).reshape(-1, *x.shape[1:])
        out, traces = torch.ops.pyflowcore.network_divergence(point, t, flat, *tables, probes)
        return fused.sign * torch.cat([out.reshape(len(z), dim).double(), traces], 1)

    loop = pfc.Field(both, time_dtype=F64)
    return FusedDensity(both, trace, x.dtype, time_dtype=F64), loop


def states(x, probes):
    integrals = torch.zeros(len(x), 1 if probes is None else len(probes), dtype=F64)
    return torch.cat([x.double().flatten(1), integrals], 1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_bits_of_the_loop(method, count, dtype):
    """More samples than a tile holds, with conditions that make some of them slow; output times inside steps."""
    fused, batch = conditioned(4, sign=-1), 60
    x, c = normals(batch, 4, dtype=dtype), normals(batch, 3, seed=1) * torch.linspace(0, 5, batch)[:, None]
    probes = None if count is None else normals(count, batch, 4, seed=2, dtype=dtype)
    one, loop = fields(fused, x, c.to(dtype), probes)
    options = (states(x, probes), [1.0, 0.8, 0.79, 0.0], method, 1e-4, 1e-4)
    found = pfc.solve(one, *options, norm_elements=4)
    wanted = pfc.solve(loop, *options, norm_elements=4)
    assert found.engine == "one call" and wanted.engine.startswith("batched loop")
    assert found.success.all() and int(found.nfe.max()) > 1.3 * int(found.nfe.min())
    assert found.x[-1, :, 4:].abs().min() > 0.0
    same(found, wanted)


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("dim, count", [(40, None), (2, 1100), (40, 70)])
def test_the_bits_of_the_loop_in_parts(dim, count, isa):
    """Tangents that pass in several parts, and more integrals than the norms' sums have in a chunk."""
    before = _library.cpu_isa()
    _library.select_cpu_isa(isa)
    try:
        x = normals(9, dim, dtype=torch.float32)
        probes = None if count is None else normals(count, 9, dim, seed=2, dtype=torch.float32)
        one, loop = fields(pfc.fuse(mlp(dim + 1, dim)), x, None, probes)
        options = (states(x, probes), [1.0, 0.0], "bosh3", 1e-2, 1e-2)
        found = pfc.solve(one, *options, norm_elements=dim)
        assert found.engine == "one call" and found.success.all()
        same(found, pfc.solve(loop, *options, norm_elements=dim))
    finally:
        _library.select_cpu_isa(before)


@pytest.mark.parametrize("count", [None, 2])
def test_alone_and_in_a_batch(count):
    fused, seeds = conditioned(3), torch.arange(40)
    x, c = normals(40, 3, dtype=torch.float32), normals(40, 3, seed=1, dtype=torch.float32)

    def call(rows):
        kind = "exact" if count is None else pfc.Hutchinson(count, seeds=seeds[rows])
        return pfc.log_prob(fused, x[rows], cond={"c": c[rows]}, divergence=kind)

    whole = call(slice(None))
    assert whole.engine == ONE_CALL
    for rows in (slice(7, 8), slice(20, 33), [39, 0, 12]):
        part = call(rows)
        assert torch.equal(part.value, whole.value[rows]) and torch.equal(part.nfe, whole.nfe[rows])
        assert torch.equal(part.stderr, whole.stderr[rows])


def test_threads_do_not_matter():
    fused, x = pfc.fuse(mlp(9, 8)), normals(500, 8, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(pfc.log_prob(fused, x, rtol=1e-3, atol=1e-3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].value, found[1].value) and torch.equal(found[0].nfe, found[1].nfe)


def linear(matrix):
    layer = torch.nn.Linear(len(matrix) + 1, len(matrix), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.cat([matrix, torch.zeros(len(matrix), 1, dtype=F64)], 1))
    return layer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [1, 5])
def test_a_gaussian_with_full_covariance(dim, method):
    """dx/dt = A x makes N(0, e^A e^A^T) of the standard normal."""
    matrix = 0.5 * normals(dim, dim)
    end = torch.linalg.matrix_exp(matrix)
    target = MultivariateNormal(torch.zeros(dim, dtype=F64), end @ end.T)
    fused = pfc.fuse(linear(matrix))
    there = pfc.sample_with_log_prob(
        fused, shape=(dim,), seeds=range(4), dtype=F64, method=method, rtol=1e-8, atol=1e-8
    )
    again = pfc.log_prob(fused, there.x, method=method, rtol=1e-8, atol=1e-8)
    assert there.engine == again.engine == ONE_CALL
    assert (there.value - target.log_prob(there.x)).abs().max() < 1e-6
    assert (again.value - target.log_prob(there.x)).abs().max() < 1e-6


def bent(turn, strength, dtype=F64):
    """dx/dt = strength R^T tanh(R x) for an orthogonal R: in y = R x every element goes by sinh(y_1) = e^strength sinh(y_0)."""
    dim = len(turn)
    net = torch.nn.Sequential(linear(turn), torch.nn.Tanh(), torch.nn.Linear(dim, dim, bias=False)).double()
    with torch.no_grad():
        net[2].weight.copy_(strength * turn.T)
    return net.to(dtype)


def bent_density(turn, strength, x1):
    y1 = x1.double() @ turn.T
    y0 = torch.asinh(torch.sinh(y1) * torch.exp(torch.tensor(-strength, dtype=F64)))
    change = y1.cosh().log() - y0.cosh().log() - strength
    return (Normal(0.0, 1.0).log_prob(y0) + change).sum(1)


def test_a_bent_density():
    """Two modes along every axis of R, in float64 and float32, exactly and by probes."""
    turn = torch.linalg.qr(normals(3, 3))[0]
    x1 = 2.0 * normals(6, 3, seed=3)
    wanted = bent_density(turn, 2.0, x1)
    fused = pfc.fuse(bent(turn, 2.0))
    found = pfc.log_prob(fused, x1, method="dop853", rtol=1e-10, atol=1e-10)
    assert found.engine == ONE_CALL and (found.value - wanted).abs().max() < 1e-8
    there = pfc.sample_with_log_prob(fused, shape=(3,), seeds=range(5), dtype=F64, rtol=1e-8, atol=1e-8)
    assert (there.value - bent_density(turn, 2.0, there.x)).abs().max() < 1e-6
    single = pfc.log_prob(pfc.fuse(bent(turn, 2.0, torch.float32)), x1.float(), rtol=1e-5, atol=1e-5)
    assert single.engine == ONE_CALL
    assert (single.value - bent_density(turn, 2.0, x1.float())).abs().max() < 2e-4
    probed = pfc.log_prob(
        fused, x1, rtol=1e-8, atol=1e-8, divergence=pfc.Hutchinson(200, "gaussian", seeds=range(6))
    )
    assert ((probed.value - wanted).abs() < 5.0 * probed.stderr).all() and (probed.stderr < 0.5).all()


def test_a_budget():
    """A sample ends where it may, the others go on, and none takes more than it may."""
    fused = conditioned(3)
    x, c = normals(50, 3), {"c": normals(50, 3, seed=1) * torch.linspace(0, 5, 50)[:, None]}
    free = pfc.log_prob(fused, x, cond=c)
    budget = int(free.nfe.float().median())
    with pytest.warns(pfc.PyflowcoreWarning, match="of 50 samples have no density .* BUDGET"):
        found = pfc.log_prob(fused, x, cond=c, max_nfe=budget)
    done = found.status == pfc.Status.SUCCESS
    assert 10 < int(done.sum()) < 45 and (found.nfe <= budget).all()
    assert torch.equal(found.value[done], free.value[done]) and torch.equal(done, free.nfe <= budget)
    assert (found.status[~done] == pfc.Status.BUDGET).all() and found.value[~done].isnan().all()


@pytest.mark.parametrize("count", [None, 2])
def test_samples_that_are_not_finite_fail_alone(count):
    fused, seeds = pfc.fuse(mlp(4, 3)), torch.arange(70)
    x = normals(70, 3, dtype=torch.float32)
    options = {} if count is None else {"divergence": pfc.Hutchinson(count, seeds=seeds)}
    fine = pfc.log_prob(fused, x, **options)
    x[11, 0], x[40, 2] = torch.nan, torch.inf
    with pytest.warns(pfc.PyflowcoreWarning, match="2 of 70 samples have no density .2 NON_FINITE"):
        found = pfc.log_prob(fused, x, **options)
    rest = torch.ones(70, dtype=torch.bool)
    rest[[11, 40]] = False
    assert torch.equal(found.value[rest], fine.value[rest]) and found.value[~rest].isnan().all()
    assert torch.equal(found.nfe[rest], fine.nfe[rest])


def test_states_of_any_shape_and_none():
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(5, 4)

        def forward(self, x, t):
            return self.net(torch.cat([x.flatten(1), t[:, None]], 1)).reshape(x.shape)

    fused, flat = pfc.fuse(Square(), shape=(2, 2)), pfc.fuse(mlp(5, 4))
    x = normals(3, 2, 2, dtype=torch.float32)
    for options in ({}, {"divergence": pfc.Hutchinson(2, seeds=range(3))}):
        found = pfc.log_prob(fused, x, **options)
        assert found.engine == ONE_CALL
        assert torch.equal(found.value, pfc.log_prob(flat, x.flatten(1), **options).value)
    assert pfc.log_prob(fused, x[:0]).value.shape == (0,)


def test_what_runs_is_said():
    x = normals(4, 2, dtype=torch.float32)
    kernel = "fused network, products inside its kernel"
    assert pfc.log_prob(pfc.fuse(mlp(3, 2)), x).engine == ONE_CALL
    mapped = pfc.fuse(mlp(3, 2), time=lambda t: 1 - t)
    assert (
        pfc.log_prob(mapped, x).engine == f"adaptive steps in a batched loop: the field maps times; {kernel}"
    )
    graded = pfc.log_prob(pfc.fuse(mlp(3, 2)), x.requires_grad_(), enable_grad=True)
    assert graded.engine.startswith("adaptive steps; forward mode") and graded.value.requires_grad


def arguments(count=None, **changes):
    fused, x = pfc.fuse(mlp(4, 3)), normals(5, 3, dtype=torch.float32)
    probes = None if count is None else normals(count, 5, 3, seed=1, dtype=torch.float32)
    times, one = torch.tensor([1.0, 0.4, 0.0], dtype=F64), torch.tensor(1e-4, dtype=F64)
    b = Buffers(Problem(fused, states(x, probes), times, "dop853", one, one, {}, 9_000, 0.0, False, None, 3))
    given = {
        "x": b.x, "clock": b.clock, "counts": b.counts, "rows": b.rows, "cond": None, "params": fused.params(x.dtype),
        "layers": fused.layers, "features": fused.features, "probes": probes, "times": b.times, "table": b.table,
        "slots": b.slots, "max_nfe": 9_000, "sign": -1.0,
    }  # fmt: skip
    return tuple({**given, **changes}.values())


@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
@pytest.mark.parametrize("count", [None, 2])
def test_the_plain_version_and_opcheck(count):
    kernel, plain = arguments(count), arguments(count)
    torch.ops.pyflowcore.network_solve_log_prob_(*kernel)
    _plain_network_solve_log_prob(*plain)
    for a, b in ((kernel[0], plain[0]), (kernel[2][:, :7], plain[2][:, :7]), (kernel[3][1:], plain[3][1:])):
        assert torch.equal(a, b)
    operator = torch.ops.pyflowcore.network_solve_log_prob_.default
    torch.library.opcheck(operator, arguments(count), test_utils="test_schema")
    torch.library.opcheck(operator, arguments(count), test_utils="test_faketensor")


REFUSED = {
    "dtype": ({"x": torch.zeros(5, 4)}, ["x must be float64"]),
    "columns": ({"x": torch.zeros(5, 1, dtype=F64)}, ["x has 1 columns"]),
    "width": ({"x": torch.zeros(5, 5, dtype=F64)}, ["layers"]),
    "probes' shape": ({"probes": torch.zeros(5, 3)}, ["probes", "[5, 3]"]),
    "probes' batch": ({"probes": torch.zeros(1, 4, 3)}, ["probes", "[1, 4, 3]"]),
    "probes' elements": ({"probes": torch.zeros(1, 5, 2)}, ["x has 4 columns", "2"]),
    "probes' dtype": ({"probes": torch.zeros(1, 5, 3, dtype=F64)}, ["probes", "Float"]),
    "cond": ({"cond": torch.zeros(5, 1)}, ["layers"]),
    "cond's dtype": ({"cond": torch.zeros(5, 1, dtype=F64)}, ["cond", "Double"]),
    "rows": ({"rows": torch.zeros(2, 5, 4, dtype=F64)}, ["rows"]),
    "slots": ({"slots": 3}, ["slots"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    changes, words = REFUSED[name]
    with pytest.raises(RuntimeError) as caught:
        torch.ops.pyflowcore.network_solve_log_prob_(*arguments(**changes))
    assert all(word in str(caught.value) for word in words), caught.value
