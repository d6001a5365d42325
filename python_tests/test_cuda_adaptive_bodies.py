"""The CUDA kernels of adaptive_, run thread by thread on the CPU, against the CPU kernels, to the bit: whole solves."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_on_cpu import library as build

import pyflowcore as pfc
from pyflowcore import adaptive_loop, solving
from pyflowcore.ops.adaptive import METHODS

COUNTS = (
    "batch", "places", "sample", "slots", "norm", "max_nfe", "row_count", "step_count", "state_dtype", "out_dtype",
    "inp_dtype", "t_dtype",
)  # fmt: skip
POINTERS = (
    "f", "x", "y", "inp", "t", "k", "clock", "counts", "rows", "steps", "running", "home", "times", "table", "partial",
)  # fmt: skip
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
PARTS = ("x", "status", "reached", "nfe", "accepted", "rejected")


class Call(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in COUNTS]
        + [("sign", ctypes.c_double)]
        + [(name, ctypes.c_void_p) for name in POINTERS]
    )


def operator(how):
    """adaptive_ by the kernels of the test's library."""
    run = build().pfc_test_adaptive

    def adaptive_(
        f,
        x,
        y,
        inp,
        t,
        k,
        clock,
        counts,
        rows,
        running,
        partial,
        steps,
        home,
        times,
        table,
        norm,
        max_nfe,
        sign,
    ):
        f = f.contiguous()
        tensors = dict(
            zip(
                POINTERS,
                (f, x, y, inp, t, k, clock, counts, rows, steps, running, home, times, table, partial),
                strict=True,
            )
        )
        call = Call(
            len(x), len(y), x[0].numel(), k.shape[1], norm, max_nfe, len(times), 0 if steps is None else steps.shape[1],
            DTYPES[x.dtype], DTYPES[f.dtype], DTYPES[x.dtype if inp is None else inp.dtype], DTYPES[t.dtype], sign,
        )  # fmt: skip
        for name, tensor in tensors.items():
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        run(ctypes.byref(call), how)

    return adaptive_


def field(x, t, w):
    shape = (-1,) + (1,) * (x.dim() - 1)
    out = 3.0 * torch.cos(x * t.to(x.dtype).reshape(shape) * w.to(x.dtype).reshape(shape)) - 0.3 * x
    return torch.where((w.reshape(shape) > 8) & (t.reshape(shape) > 0.6), torch.nan, out)


@pytest.mark.parametrize(
    "dtype, times", [(torch.float64, [0.0, 0.3, 0.31, 1.0]), (torch.float32, [0.0, 1.0])]
)
@pytest.mark.parametrize("method", METHODS)
def test_whole_solves(monkeypatch, method, times, dtype):
    cases = [((3, 2), torch.bfloat16), ((2, 1025), None)]
    for shape, out in cases:
        x0 = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        cond = {"w": torch.linspace(0.5, 9.0, shape[0], dtype=torch.float64)}
        tolerance, found = 1e-2 if out else 1e-4, []
        for how in (0, 1, 2):
            with monkeypatch.context() as patch:
                patch.setattr(adaptive_loop, "_adaptive_", operator(how))
                patch.setattr(solving, "runs_in_lockstep", lambda problem: False)
                found.append(
                    pfc.solve(
                        pfc.Field(field, dtype=out, sign=-1),
                        x0,
                        times,
                        method,
                        tolerance,
                        tolerance,
                        cond,
                        max_nfe=45,
                        compact=dtype == torch.float64,
                        norm_elements=x0[0].numel() - 1,
                    )
                )
        assert found[0].accepted.sum() > 3
        for other in found[1:]:
            for part in PARTS:
                assert torch.equal(getattr(found[0], part), getattr(other, part)), (shape, part)


@pytest.mark.parametrize("which, at, value", [
    ("counts", (1, 0), 10**9), ("counts", (1, 0), -(10**9)), ("counts", (1, 5), -(10**10)), ("counts", (1, 3), -(10**10)),
    ("home", 1, 10**10), ("home", 1, -1), ("clock", (1, 2), float("nan")),
])  # fmt: skip
def test_what_leads_out_of_memory_is_left_alone(which, at, value):
    """The host cannot look at a device's numbers: the other samples go on as ever, that one stays as it is."""
    from test_ops_adaptive import arguments

    torch.manual_seed(0)
    good = arguments()
    good[12] = torch.arange(3)
    good[7][:, 0] = 2  # in the middle of a step
    good[6][:, 1:3] = torch.tensor([0.1, 0.1], dtype=torch.float64)
    good[5].copy_(torch.randn(good[5].shape))
    bad = [one.clone() if isinstance(one, torch.Tensor) else one for one in good]
    bad[{"counts": 7, "home": 12, "clock": 6}[which]][at] = value
    before = [one.clone() if isinstance(one, torch.Tensor) else one for one in bad]
    operator(1)(*good)
    operator(1)(*bad)
    others = torch.tensor([0, 2])
    for place in (1, 2, 4, 7):
        assert torch.equal(good[place][others], bad[place][others])
    for place in (1, 2, 4, 5):
        assert torch.equal(before[place][1], bad[place][1])
    assert not torch.equal(before[2][0], bad[2][0])
