"""Every CPU instruction set of this machine gives the same bits, and so does plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library
from pyflowcore.ops import _plain
from reference.noise import normals
from reference.tables import R, table

ISAS = _library.cpu_isas()
pytestmark = pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
SHAPES = [(1, 1), (3, 7), (5, 63), (2, 1025), (7, 4, 33), (2, 14_003)]
ROW = table(
    p=0.3, q=-1.7, a=0.93, c=1.04, b_new=0.2, e_new=-0.6, b={0: 0.4, 2: -0.3}, e={1: 0.7}, s={4: 0.5, 9: -0.2}, r={4: 0.1},
    store=3, in_scale=0.75,
)  # fmt: skip


@pytest.fixture
def each_isa():
    """Runs a function on every instruction set."""
    before = pfc.cpu_isa()

    def run(function):
        results = {}
        for name in ISAS:
            pfc.select_cpu_isa(name)
            assert pfc.cpu_isa() == name
            results[name] = function()
        return results

    yield run
    pfc.select_cpu_isa(before)


def bits(tensors):
    whole = {4: torch.int32, 8: torch.int64, 2: torch.int16}
    return [t.contiguous().view(whole[t.element_size()]) for t in tensors]


def all_same(results):
    first = next(iter(results.values()))
    for name, found in results.items():
        for i, (a, b) in enumerate(zip(bits(first), bits(found), strict=True)):
            assert torch.equal(a, b), (name, i)


def test_the_machine_has_a_baseline():
    assert "baseline" in ISAS
    assert pfc.cpu_isa() in ISAS


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_randn(each_isa, shape, dtype):
    seeds = list(range(-1, shape[0] - 1))
    results = each_isa(lambda: [pfc.randn(seeds, shape[1:], dtype=dtype)])
    numpy = torch.from_numpy(normals(seeds, math.prod(shape[1:])))
    plain = _plain.randn(torch.tensor(seeds), shape[1:], 0, 0, dtype)
    all_same(results | {"numpy": [numpy.reshape(shape).to(dtype)], "plain": [plain]})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("out", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_sample", [False, True])
def test_combine_in_place(each_isa, shape, state, out, per_sample):
    make = torch.Generator().manual_seed(0)

    def values(*size, dtype):
        return torch.randn(*size, generator=make, dtype=torch.float64).to(dtype)

    batch = shape[0]
    x, y, slots = (values(*s, dtype=state) for s in (shape, shape, (4, *shape)))
    outs = values(2 * batch, *shape[1:], dtype=out)
    guidance = values(1, batch if per_sample else 1, dtype=state)
    seeds = torch.arange(batch)

    def run(combine_=pfc.ops.combine_):
        a = x.clone(), slots.clone(), torch.empty_like(x), outs.new_empty(3 * batch, *shape[1:])
        arguments = {
            "out": outs,
            "y": y,
            "slots": a[1],
            "y_out": a[2],
            "inp": a[3],
            "guidance": guidance,
            "seeds": seeds,
        }
        if combine_ is _plain.combine_:
            arguments["out2"] = None
            combine_(x=a[0], table=ROW, row=0, **arguments)
        else:
            combine_(a[0], ROW, 0, **arguments)
        return a

    all_same(each_isa(run) | {"plain": run(_plain.combine_)})


@pytest.mark.parametrize("letters", [
    {"b_new": 0.1}, {"a": 0.0, "b_new": 2.0}, {"a": 1.7, "b_new": 0.3}, {"a": -0.2}, {"e_new": 0.3}, {"q": 0.0, "p": 1.0},
    {"evaluates": 0.0, "a": 0.9, "s": {0: 0.5, 1: 0.25, 2: 0.125, 3: 1.0}}, {"a": 0.50000001, "c": 1.4999999, "e_new": 1.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_combine_rows(each_isa, letters, state):
    row = table(**letters)
    x = pfc.randn([1, 2], (3, 333), dtype=state)
    outs = [pfc.randn([3, 4], (3, 333), dtype=state)] if row[0, R["evaluates"]] else []
    seeds = torch.tensor([5, 6])
    results = each_isa(lambda: pfc.ops.combine(x, row, 0, outs=outs, seeds=seeds))
    all_same(results | {"plain": _plain.combine(x, None, [], outs, None, seeds, row, 0)})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", [0, 1, 2])
def test_interpolate(each_isa, shape, dtype, path):
    data = pfc.randn(range(shape[0]), shape[1:], dtype=dtype)
    t = torch.rand(shape[0], generator=torch.Generator().manual_seed(1))
    for x0, seeds in (
        (pfc.randn(range(9, 9 + shape[0]), shape[1:], dtype=dtype), None),
        (None, torch.arange(shape[0])),
    ):
        arguments = (data, t, x0, seeds, path, 0.1, 20.0, 0, 3, 1)
        results = each_isa(lambda arguments=arguments: torch.ops.pyflowcore.interpolate(*arguments))
        all_same(results | {"plain": _plain.interpolate(*arguments)})


def test_a_whole_trajectory(each_isa):
    plan = pfc.plan("heun", 7, grid=pfc.grids.shifted(3.0))

    def field(x, t, y):
        return x * (t[:, None] - y[:, None])

    def run():
        return [pfc.Sampler(plan, pfc.CFG(2.5, (0.1, 0.7)))(
            field, shape=(333,), seeds=range(5), cond={"y": torch.arange(5.0)}, uncond={"y": torch.zeros(())}
        )]  # fmt: skip

    all_same(each_isa(run))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"'sse9'.*allowed are baseline"):
        pfc.select_cpu_isa("sse9")
