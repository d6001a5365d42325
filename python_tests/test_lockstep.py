"""Samples in lockstep: the bits of the loop over adaptive_, on every instruction set, whatever shares a vector."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library, solving
from pyflowcore.adaptive_loop import Problem
from pyflowcore.lockstep import runs_in_lockstep
from pyflowcore.ops.adaptive import TABLES

PARTS = ("x", "status", "reached", "nfe", "accepted", "rejected")
pytestmark = pytest.mark.skipif(not _library.cpu.live, reason="the compiled kernels")
CASES = [
    ((1, 1), torch.float32, "dopri5", [0.0, 1.0], {}),
    ((9, 2), torch.float32, "dopri5", [1.0, 0.9, 0.5, 0.49, -0.2], {"first_step": 0.1}),
    ((13, 5), torch.float64, "tsit5", [0.0, 0.1, 0.11, 1.0], {"norm_elements": 4, "max_nfe": 70}),
    ((7, 17), torch.float64, "bosh3", [0.0, 0.8], {"max_nfe": 200}),
    ((3, 4, 8), torch.float32, "tsit5", [0.0, 1.0], {}),
    ((2100, 2), torch.float32, "bosh3", [0.0, 1.0], {"max_nfe": 40}),
]


def field(x, t, w):
    shape = (-1,) + (1,) * (x.dim() - 1)
    w, t = w.to(x.dtype).reshape(shape), t.to(x.dtype).reshape(shape)
    return torch.where((w > 8) & (t > 0.6), torch.nan, 3.0 * torch.cos(x * t * w) - 0.3 * x)


def start(shape, dtype):
    x0 = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return x0, torch.linspace(0.5, 9.0, shape[0], dtype=torch.float64)


def same(a, b, what=""):
    assert a.rounds == b.rounds, what
    for part in PARTS:
        torch.testing.assert_close(
            getattr(a, part), getattr(b, part), rtol=0, atol=0, equal_nan=True, msg=f"{what} {part}"
        )


@pytest.mark.parametrize("shape, dtype, method, times, options", CASES)
def test_the_bits_of_the_loop(monkeypatch, shape, dtype, method, times, options):
    """Some samples reject steps, some end for want of evaluations, one is not finite, all have tolerances of their own."""
    x0, w = start(shape, dtype)
    rtol = torch.logspace(-4, -3, shape[0], dtype=torch.float64)
    arguments = (field, x0, times, method, rtol, 1e-4, {"w": w})
    before = pfc.cpu_isa()
    try:
        found = {}
        for isa in _library.cpu_isas():
            pfc.select_cpu_isa(isa)
            found[isa] = pfc.solve(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(solving, "runs_in_lockstep", lambda problem: False)
            loop = pfc.solve(*arguments, **options)
    finally:
        pfc.select_cpu_isa(before)
    assert loop.accepted.sum() > 3 and (shape[0] == 1 or loop.rejected.sum() > 0)
    for isa, one in found.items():
        same(one, loop, isa)


def test_a_sample_alone():
    x0, w = start((11, 3), torch.float32)
    together = pfc.solve(field, x0, [0.0, 0.4, 1.0], cond={"w": w})
    for i in (0, 5, 10):
        alone = pfc.solve(field, x0[i : i + 1], [0.0, 0.4, 1.0], cond={"w": w[i : i + 1]})
        assert torch.equal(alone.x[:, 0], together.x[:, i]) and torch.equal(alone.nfe[0], together.nfe[i])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_values_of_another_dtype(monkeypatch, dtype):
    x0, w = start((11, 3), torch.float32)
    arguments = (lambda x, t: (x * w[:, None]).cos().to(dtype), x0, [0.0, 1.0], "dopri5", 1e-2, 1e-2)
    found = pfc.solve(*arguments)
    monkeypatch.setattr(solving, "runs_in_lockstep", lambda problem: False)
    same(found, pfc.solve(*arguments))


def test_a_field_may_return_its_argument_or_a_part_of_it():
    x0 = torch.ones(20, 2)
    same(pfc.solve(lambda x, t: x, x0, [0.0, 1.0]), pfc.solve(lambda x, t: x.clone(), x0, [0.0, 1.0]))
    same(
        pfc.solve(lambda x, t: x.flip(0).flip(0), x0, [0.0, 1.0]),
        pfc.solve(lambda x, t: x.clone(), x0, [0.0, 1.0]),
    )


def test_what_runs_so():
    def problem(method="dopri5", shape=(4, 2), **options):
        given = {
            "max_nfe": 100,
            "first_step": 0.0,
            "compact": False,
            "rounds": None,
            "norm_elements": 2,
        } | options
        times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return Problem(pfc.Field(lambda x, t: -x), torch.ones(shape), times, method, 1e-3, 1e-3, {}, **given)

    assert runs_in_lockstep(problem()) and runs_in_lockstep(problem("bosh3", (1, 32)))
    for other in (
        problem("dop853"),
        problem(shape=(4, 33)),
        problem(compact=True),
        problem(rounds=3),
        problem(record=True),
    ):
        assert not runs_in_lockstep(other)


def operator_arguments():
    x = torch.ones(3, 2)
    times, tolerances = (
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        torch.full((2, 1), 1e-3, dtype=torch.float64),
    )
    memory = torch.ops.pyflowcore.lockstep_begin(x, times, TABLES["dopri5"], tolerances, 0.0, 2, 100, 1.0)
    return x, times, tolerances, memory


def test_refusals():
    x, times, tolerances, memory = operator_arguments()
    ops, table = torch.ops.pyflowcore, TABLES["dopri5"]
    y, t = x.clone(), torch.zeros(3)
    for given, message in (
        ((x.half(), times, table, tolerances, 0.0, 2, 100, 1.0), "x, the state, must be float32 or float64"),
        ((x, times.flip(0)[:1], table, tolerances, 0.0, 2, 100, 1.0), "times must be contiguous Double"),
        ((x, times, TABLES["dop853"], tolerances, 0.0, 2, 100, 1.0), "table has 3 stages of dense output"),
        ((x, times, table, tolerances[:1], 0.0, 2, 100, 1.0), "tolerances must be contiguous float64"),
        ((x, times, table, tolerances, 0.0, 3, 100, 1.0), "norm_elements is 3, a sample has 2"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.lockstep_begin(*given)
    for given, message in (
        ((x[:, :1], y, t, memory), r"the field returned shape \[3, 1\] at points of shape \[3, 2\]"),
        ((x[:2], y[:2], t, memory), "y has shape .*, the solve has 3 samples of 2 elements"),
        ((x, y.double(), t, memory), "y must be contiguous Float"),
        ((x, y, t[:2], memory), "t must be contiguous Float with at least 3"),
        ((x, y, t, memory[:-8]), "memory is not what lockstep_begin made"),
        ((x, y, t, torch.zeros(500, dtype=torch.float64)), "memory is not what lockstep_begin made"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.lockstep_(*given)
    with pytest.raises(RuntimeError, match="memory is not what lockstep_begin made"):
        ops.lockstep_end(memory[8:], y)
    with pytest.raises(RuntimeError, match="y has shape"):
        ops.lockstep_end(memory, y[:2])


def test_a_value_on_another_device():
    with pytest.raises(ValueError, match="the field returned a tensor on meta, the state is on cpu"):
        pfc.solve(lambda x, t: x.to("meta"), torch.ones(3, 2), [0.0, 1.0])
