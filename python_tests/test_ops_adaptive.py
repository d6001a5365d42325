"""adaptive_: the same bits on every instruction set, in chunks and whole, on threads, and in plain PyTorch."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library, adaptive_loop, solving
from pyflowcore.adaptive_loop import Buffers, Problem
from pyflowcore.ops import _plain_adaptive
from pyflowcore.ops.adaptive import METHODS

PARTS = ("x", "status", "reached", "nfe", "accepted", "rejected")
pytestmark = pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")


@pytest.fixture(autouse=True)
def _through_the_operator(monkeypatch):
    """Small samples have a kernel of their own (test_lockstep.py)."""
    monkeypatch.setattr(solving, "runs_in_lockstep", lambda problem: False)


def field(x, t, w):
    shape = (-1,) + (1,) * (x.dim() - 1)
    out = 3.0 * torch.cos(x * t.to(x.dtype).reshape(shape) * w.to(x.dtype).reshape(shape)) - 0.3 * x
    return torch.where((w.reshape(shape) > 8) & (t.reshape(shape) > 0.6), torch.nan, out)


def solve(shape, times, method, dtype, out=None, tolerance=1e-4):
    x0 = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    w = torch.linspace(0.5, 9.0, shape[0], dtype=torch.float64)
    return pfc.solve(
        pfc.Field(field, dtype=out), x0, times, method, tolerance, tolerance, {"w": w}, max_nfe=70
    )


def same(a, b, what):
    for part in PARTS:
        assert torch.equal(getattr(a, part), getattr(b, part)), (what, part)


@pytest.mark.parametrize(
    "dtype, times", [(torch.float64, [0.0, 0.3, 0.31, 1.0]), (torch.float32, [1.0, 0.5, -0.2])]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_instruction_set_and_plain_torch(monkeypatch, method, times, dtype):
    """Samples of less than a vector, of odd sizes, of several chunks; some end for want of evaluations, one is not finite."""
    before = pfc.cpu_isa()
    try:
        for shape, out in (((4, 1), None), ((3, 5, 27), torch.bfloat16), ((2, 1100), torch.float16)):
            found = {}
            for isa in _library.cpu_isas():
                pfc.select_cpu_isa(isa)
                found[isa] = solve(shape, times, method, dtype, out, 1e-2 if out else 1e-4)
            with monkeypatch.context() as patch:
                patch.setattr(adaptive_loop, "_adaptive_", _plain_adaptive.adaptive_)
                plain = solve(shape, times, method, dtype, out, 1e-2 if out else 1e-4)
            assert plain.accepted.sum() > 3 and (times[0] == 0.0 or plain.status[-1] == pfc.Status.NON_FINITE)
            for isa, one in found.items():
                same(one, plain, (isa, shape))
    finally:
        pfc.select_cpu_isa(before)


@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_large_samples_are_shared_among_threads(method):
    """Two samples of 40 chunks go to threads by chunks, twenty of them whole."""
    w = torch.tensor([0.5, 2.0]).repeat(10)
    x0 = torch.randn(2, 40_500, generator=torch.Generator().manual_seed(3)).repeat(10, 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads, batch in ((1, 2), (2, 2), (2, 20)):
            torch.set_num_threads(threads)
            found.append(pfc.solve(field, x0[:batch], [0.0, 0.4, 1.0], method, cond={"w": w[:batch]}))
    finally:
        torch.set_num_threads(before)
    same(found[0], found[1], "threads")
    assert torch.equal(found[0].x, found[2].x[:, :2]) and torch.equal(found[0].nfe, found[2].nfe[:2])


def test_small_samples_on_threads():
    x0 = torch.randn(5000, 3, generator=torch.Generator().manual_seed(4))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(pfc.solve(lambda x, t: torch.cos(x) - x * t[:, None], x0, [0.0, 1.0]))
    finally:
        torch.set_num_threads(before)
    same(*found, "threads")


def arguments(dtype=torch.float64, times=(0.0, 0.5, 1.0), out=None, record=True):
    x0 = torch.randn(3, 5, dtype=dtype)
    one = torch.tensor(1e-4, dtype=torch.float64)
    given = torch.tensor(times, dtype=torch.float64)
    made = pfc.Field(lambda x, t: -x, dtype=out)
    b = Buffers(Problem(made, x0, given, "dop853", one, one, {}, 1000, 0.0, False, None, 5, record))
    f = torch.randn(3, 5, dtype=dtype)
    return [
        f, b.x, b.y, b.inp, b.t, b.k, b.clock, b.counts, b.rows, b.running, b.partial, b.steps, b.home, b.times, b.table, 5,
        1000, 1.0,
    ]  # fmt: skip


@pytest.mark.parametrize("out", [None, torch.bfloat16])
def test_opcheck(out):
    for test in ("test_schema", "test_faketensor"):
        torch.library.opcheck(
            torch.ops.pyflowcore.adaptive_.default, tuple(arguments(out=out)), test_utils=test
        )


@pytest.mark.skipif(not _library.cpu.live, reason="the compiled kernels' checks")
@pytest.mark.parametrize("which, value, message", [
    (0, torch.zeros(3, 4), r"the field returned shape \[3, 4\] at points of shape \[3, 5\]"),
    (0, torch.zeros(3, 5, dtype=torch.int64), "f has dtype Long"),
    (1, torch.zeros(3, 5, dtype=torch.float16), "x, the state, must be float32 or float64"),
    (2, torch.zeros(3, 5), "y must be contiguous Double"),
    (5, torch.zeros(3, 2, 5, dtype=torch.float64), "k has 2 slots, the method needs 17"),
    (6, torch.zeros(3, 2, dtype=torch.float64), "clock must be contiguous Double with at least 30 elements"),
    (7, torch.zeros(3, 8), "counts must be contiguous Long"),
    (8, torch.zeros(2, 3, 5, dtype=torch.float64), r"rows must have shape \[times, B, ...\]"),
    (10, torch.zeros(1, dtype=torch.float64), "partial must be contiguous Double with at least 6"),
    (11, torch.zeros(3, 5, dtype=torch.float64), r"steps must have shape \[B, capacity, 2\]"),
    (14, torch.zeros(5, 16, dtype=torch.float64), "table must have 24 rows, got 5"),
    (14, torch.zeros(24, 15, dtype=torch.float64), "table must be contiguous float64 of shape"),
    (15, 6, "norm_elements is 6, a sample has 5"),
])  # fmt: skip
def test_refusals(which, value, message):
    given = arguments()
    given[which] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyflowcore.adaptive_(*given)


def test_home_is_checked():
    given = arguments()
    given[0], given[2] = given[0][:2], given[2][:2].clone()
    with pytest.raises(RuntimeError, match="home is missing: y has 2 samples, x has 3"):
        torch.ops.pyflowcore.adaptive_(*given)


PHASE, ACCEPTED, ROW, NFE, FACTS = 0, 3, 5, 2, 23


def changed(tensor, at, value):
    made = tensor.clone()
    made[at] = value
    return made


HOSTILE = [
    ("counts", (0, PHASE), 10**9, "sample 0 are of no solve .* phase 1000000000,"),
    ("counts", (1, PHASE), -(10**9), "sample 1 are of no solve"),
    ("counts", (2, PHASE), 16, "phase 16,"),
    ("counts", (0, ROW), -(10**10), "row -10000000000,"),
    ("counts", (0, ROW), 3, "row 3,"),
    ("counts", (0, ACCEPTED), -(10**10), "accepted -10000000000,"),
    ("counts", (0, NFE), -1, "nfe -1,"),
    ("times", 1, float("nan"), "times must increase, or decrease"),
    ("times", 2, float("nan"), "times must be finite"),
    ("table", (FACTS, 0), -1e9, "table: row 23 has stages -1e\\+09"),
    ("table", (FACTS, 0), float("nan"), "table: row 23 has stages"),
    ("table", (FACTS, 1), 12.0, "table: row 23 has the deciding stage 12"),
    ("table", (FACTS, 2), 4.0, "table: row 23 has extra stages 4"),
    ("table", (FACTS, 3), 0.0, "table: row 23 has order 0"),
    ("table", (FACTS, 4), 2e9, "table: row 23 has dense rows 2e\\+09"),
    ("table", (3, 14), 1.0, "table: row 3 has a weight in column 14, allowed are 3 columns"),
    ("table", (17, 15), float("nan"), "table: row 17 has a weight in column 15"),
]


@pytest.mark.skipif(not _library.cpu.live, reason="the compiled kernels' checks")
@pytest.mark.parametrize("which, at, value, message", HOSTILE)
def test_numbers_that_lead_out_of_memory(which, at, value, message):
    """Refused by both operators, before anything is written."""
    place = {"counts": 7, "times": 13, "table": 14}[which]
    given = arguments()
    given[place] = changed(given[place], at, value)
    before = given[1].clone()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyflowcore.adaptive_(*given)
    assert torch.equal(given[1], before)

    fused = pfc.fuse(torch.nn.Linear(6, 5))
    given = arguments()
    given[place] = changed(given[place], at, value)
    _, x, _, _, _, _, clock, counts, rows, _, _, _, _, times, table, *_ = given
    tables = fused.params(x.dtype), fused.layers, fused.features
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyflowcore.network_solve_(
            x, clock, counts, rows, None, *tables, times, table, 17, 5, 1000, 1.0
        )


@pytest.mark.skipif(not _library.cpu.live, reason="the compiled kernels' checks")
def test_a_time_beyond_the_last():
    """Rows would be written that are not there to be made."""
    for value in (2.0, float("nan")):
        given = arguments(times=(0.0, 1.0))
        given[7][0, PHASE] = 12
        given[6][0, 2] = value
        with pytest.raises(RuntimeError, match="sample 0 are of no solve"):
            torch.ops.pyflowcore.adaptive_(*given)


@pytest.mark.skipif(not _library.cpu.live, reason="the compiled kernels' checks")
@pytest.mark.parametrize("home, message", [
    ([10**10, 0, 1], "home is 10000000000 at 0, allowed are 0 to 2"), ([0, -1, 1], "home is -1 at 1"),
    ([0, 1, 0], "home is 0 twice"),
])  # fmt: skip
def test_home_names_each_sample_once(home, message):
    given = arguments()
    given[12] = torch.tensor(home)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyflowcore.adaptive_(*given)
