"""The CUDA kernels of transformer blocks, run thread by thread on the CPU, against the CPU kernels: norms and residuals to the
bit, activations as well where the CPU has the same operations, and elsewhere to a few ulp."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import load

from pyflowcore import _library
from pyflowcore.ops import block

SOURCE = Path(__file__).with_name("block_on_cpu.cpp")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
COUNTS = ("rows", "width", "tokens", "dtype", "rms", "gate_stride", "shift_stride", "scale_stride")
POINTERS = ("x", "y", "x_out", "out", "y_bias", "weight", "bias", "gate", "shift", "scale")
# Around an item, a warp's, what each kernel holds, and what none does.
WIDTHS = (1, 3, 4, 7, 8, 124, 128, 129, 132, 511, 512, 516, 1025, 1152, 1156, 2048, 2052)


class NormCall(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in COUNTS]
        + [("eps", ctypes.c_double)]
        + [(name, ctypes.c_void_p) for name in POINTERS]
    )


@functools.cache
def library() -> ctypes.CDLL:
    return load(SOURCE)


def values(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def moved(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """The same, ``by`` elements off its alignment."""
    return torch.cat([tensor.new_zeros(by), tensor.flatten()])[by:].view(tensor.shape)


def norm(
    given: dict[str, torch.Tensor | None], tokens: int, rms: bool, normed: bool
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """(which kernel, the new x, the norm), by the CUDA kernels' threads."""
    x = given["x"]
    assert x is not None
    out, x_out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    call = NormCall(
        rows=x.numel() // x.shape[-1],
        width=x.shape[-1],
        tokens=tokens,
        dtype=DTYPES[x.dtype],
        rms=rms,
        eps=1e-6,
    )
    for name, tensor in given.items():
        if tensor is not None:
            setattr(call, name, tensor.data_ptr())
            if name in ("gate", "shift", "scale"):
                setattr(call, f"{name}_stride", tensor.stride(0))
    if given["y"] is not None:
        call.x_out = x_out.data_ptr()
    if normed:
        call.out = out.data_ptr()
    return library().pfc_test_block_norm(ctypes.byref(call)), x_out, out


def operands(
    batch: int, tokens: int, width: int, dtype: torch.dtype, off: int = 0
) -> dict[str, torch.Tensor | None]:
    chunks = values(batch, 3 * width + off, dtype=dtype, seed=2)[:, off:].split(width, 1)
    vectors = [moved(values(width, dtype=dtype, seed=3 + i), off) for i in range(3)]
    return {
        "x": moved(values(batch, tokens, width, dtype=dtype, seed=0), off),
        "y": values(batch, tokens, width, dtype=dtype, seed=1),
        "gate": chunks[0], "shift": chunks[1], "scale": chunks[2],
        "y_bias": vectors[0], "weight": vectors[1], "bias": vectors[2],
    }  # fmt: skip


def held(width: int, dtype: torch.dtype) -> int:
    if dtype == torch.float64 or width > 2048:
        return 0
    return next(held for held in (4, 9, 16) if width <= 128 * held)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_and_residuals_to_the_bit(dtype: torch.dtype, kind: str) -> None:
    for width in WIDTHS:
        for off in (0, 1):
            given = operands(2, 3, width, dtype, off)
            kernel, new, normed = norm(given, 3, kind == "rms", True)
            expected = block.gate_residual_norm(**given, kind=kind)  # type: ignore[arg-type]
            assert torch.equal(new, expected[0]) and torch.equal(normed, expected[1]), (width, off)
            aligned = width % 4 == 0 and off == 0
            assert kernel == (10 * held(width, dtype) + 1 if aligned else 0), (width, off)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_may_be_absent(dtype: torch.dtype) -> None:
    absent = dict.fromkeys(("y", "gate", "shift", "scale", "y_bias", "weight", "bias"))
    for width in (7, 1152):
        whole = operands(3, 2, width, dtype)
        for present in ((), ("scale",), ("shift", "weight"), ("bias",)):
            given = {"x": whole["x"], **absent, **{name: whole[name] for name in present}}
            _, _, normed = norm(given, 2, False, True)
            expected = block.norm_modulate(
                given["x"], given["shift"], given["scale"], weight=given["weight"], bias=given["bias"]
            )
            assert torch.equal(normed, expected), (width, present)
        for present in ((), ("gate",), ("y_bias",), ("gate", "y_bias")):
            given = {"x": whole["x"], **absent, "y": whole["y"], **{name: whole[name] for name in present}}
            _, new, normed = norm(given, 2, False, False)
            expected = block.gate_residual(given["x"], given["y"], given["gate"], y_bias=given["y_bias"])
            assert torch.equal(new, expected) and bool(normed.isnan().all()), (width, present)


@pytest.fixture(params=_library.cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _library.cpu_isa()
    assert before is not None
    _library.select_cpu_isa(request.param)
    yield request.param
    _library.select_cpu_isa(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_activations(dtype: torch.dtype, kind: int, isa: str) -> None:
    """AVX2 has a fused multiply-add and no estimate of a quotient: the operations of CUDA, but for float64, a library's."""
    ours = {0: block.gelu, 1: lambda x, b: block.gelu(x, b, "tanh"), 2: block.swiglu}[kind]
    for rows, width in ((1, 1), (1, 3), (1, 1025), (1, 4096), (5, 4), (3, 7), (2, 1028), (600, 2)):
        for bias in (None, values(width * (1 + (kind == 2)), dtype=dtype, seed=1)):
            if rows > 1 and bias is None and kind != 2:
                continue  # the torch layer makes one row of them
            x = 3 * values(rows, width * (1 + (kind == 2)), dtype=dtype, seed=0)
            for off in (0, 1):
                here = moved(x, off)
                out = torch.full((rows, width), torch.nan, dtype=dtype)
                vector = library().pfc_test_block_gated(
                    ctypes.c_int64(rows), ctypes.c_int64(width), ctypes.c_int64(DTYPES[dtype]), ctypes.c_int64(kind),
                    ctypes.c_void_p(here.data_ptr()), ctypes.c_void_p(None if bias is None else bias.data_ptr()),
                    ctypes.c_void_p(out.data_ptr()),
                )  # fmt: skip
                whole_rows = width % 4 == 0 or (rows == 1 and kind != 2)
                assert vector == (whole_rows and off == 0)
                expected = ours(x, bias)
                if isa == "avx2" and dtype != torch.float64:
                    assert torch.equal(out, expected), (rows, width, off)
                    continue
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(
                    out, expected, rtol=6 * eps, atol=1e-9 if dtype != torch.float64 else 1e-17
                )


@pytest.mark.parametrize("width", WIDTHS)
def test_every_element_of_a_row_once(width: int) -> None:
    visits = np.zeros(width + 8, dtype=np.int64)
    library().pfc_test_block_items(ctypes.c_int64(width), ctypes.c_void_p(visits.ctypes.data))
    assert bool((visits[:width] == 1).all()) and not visits[width:].any()


def test_places_beyond_32_bits() -> None:
    found = np.zeros(2, dtype=np.int64)
    for width in (3, 4, 1025, 4096, 2**33 + 1):
        rows = 2**40 // width
        for offset in (0, width - 1, width, rows * width - 1, rows // 2 * width + width // 2):
            for kind in (0, 2):
                library().pfc_test_block_place(
                    *(ctypes.c_int64(n) for n in (rows, width, kind, offset)),
                    ctypes.c_void_p(found.ctypes.data),
                )
                row, column = divmod(offset, width)
                assert found.tolist() == [offset + row * width if kind == 2 else offset, column]
