"""bfloat16 and float16: all 2^16 patterns read, and every float32 near a rounding decision written, as torch does."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library
from reference.tables import table

PATTERNS = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.int16)
HALVES = (torch.bfloat16, torch.float16)
WIDTHS = (2**16, 2**16 - 1, 1)  # whole vectors; a tail; the scalar path


@pytest.fixture(params=_library.cpu_isas())
def isa(request):
    before = pfc.cpu_isa()
    pfc.select_cpu_isa(request.param)
    yield request.param
    pfc.select_cpu_isa(before)


def same(found, wanted):
    """Equal bits, or both not a number."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    nan = found.isnan() & wanted.isnan()
    differ = (found.view(whole) != wanted.view(whole)) & ~nan
    assert not bool(differ.any()), (found[differ][:5], wanted[differ][:5])


def read(half, state):
    """`half` through combine_'s out: x <- 0 x + out."""
    x = torch.empty(half.shape, dtype=state)
    # D is kept in a slot, which receives it without an addition, so that -0 keeps its sign.
    slots = torch.empty(1, *half.shape, dtype=state)
    pfc.ops.combine_(x.zero_(), table(store=0), 0, out=half, slots=slots)
    return slots[0]


def write(values, half):
    """`values` through combine_'s inp."""
    inp = torch.empty(values.shape, dtype=half)
    x = values.clone()
    pfc.ops.combine_(x, table(evaluates=0.0, a=0.0, b={0: 1.0}), 0, inp=inp, slots=values[None].clone())
    return inp


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_read_every_pattern(isa, half, state):
    every = PATTERNS.view(half)[None]
    same(read(every, state), every.to(state))
    same(read(every[:, 1:].contiguous(), state), every[:, 1:].to(state))


@pytest.mark.parametrize("half", HALVES)
def test_read_one_at_a_time(isa, half):
    for start in range(0, 2**16, 4099):
        one = PATTERNS[start : start + 1].view(half)[None].contiguous()
        same(read(one, torch.float32), one.float())


def decisions(half):
    """Every value of the half type, its neighbours' midpoints and the floats beside both: where rounding decides."""
    exact = PATTERNS.view(half).float()
    finite = exact[exact.isfinite()].sort().values
    middle = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    around = torch.cat(
        [finite, middle, torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 3.3e38, 3.4e38, 1e-45])]
    )
    inf = torch.tensor(float("inf"))
    steps = [around, torch.nextafter(around, inf), torch.nextafter(around, -inf)]
    return torch.cat(
        [*steps, *(-step for step in steps), torch.tensor([float("inf"), -float("inf"), float("nan")])]
    )


@pytest.mark.parametrize("half", HALVES)
def test_write_every_rounding_decision(isa, half):
    values = decisions(half)
    values = values[values != 0][None]  # 0 + (-0) is +0: the sign of a zero is not the conversion's
    same(write(values, half), values.to(half))
    same(write(values[:, 1:].contiguous(), half), values[:, 1:].to(half))
    few = values[:, :: max(1, values.shape[1] // 500)]
    for i in range(0, few.shape[1], 7):
        same(write(few[:, i : i + 1].contiguous(), half), few[:, i : i + 1].to(half))


@pytest.mark.parametrize("half", HALVES)
def test_write_and_read_give_every_pattern_back(isa, half):
    every = PATTERNS.view(half)
    every = every[~every.isnan() & (every != 0)][None].contiguous()
    same(write(read(every, torch.float32), half), every)


@pytest.mark.parametrize("half", HALVES)
def test_random_floats(isa, half):
    make = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (1, 300_000), generator=make).to(torch.int32).view(torch.float32)
    values = values[values != 0][None]
    same(write(values, half), values.to(half))


@pytest.mark.parametrize("half", HALVES)
def test_float64_goes_through_float32(isa, half):
    """A float64 state is written by way of float32, as torch does."""
    values = pfc.randn([0], (5000,), dtype=torch.float64) * (1 + 2.0**-30)
    same(write(values, half), values.float().to(half))
