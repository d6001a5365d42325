"""The CUDA kernels of qk_norm_rope and group_norm_silu, thread by thread on the CPU, against the CPU kernels, to the bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from compiled import load

SOURCE = Path(__file__).with_name("tokens_on_cpu.cpp")
DTYPES = {
    "float32": (0, np.float32),
    "float64": (1, np.float64),
    "bfloat16": (2, np.uint16),
    "float16": (3, np.float16),
}
POISON = 0x7B


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return load(SOURCE)


def numbers(make: np.random.Generator, dtype: str, count: int, shift: int = 0) -> np.ndarray:
    """Normals of a dtype, bfloat16 as its bits; `shift` elements into memory that is aligned."""
    raw = np.zeros((count + shift) * 8 + 64, np.uint8)
    raw = raw[-raw.ctypes.data % 64 :]
    whole = raw[: (count + shift) * np.dtype(DTYPES[dtype][1]).itemsize].view(DTYPES[dtype][1])
    values = make.standard_normal(count + shift).astype(np.float32)
    whole[:] = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values
    return whole[shift:]


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def pointers(*arrays: np.ndarray | None) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(address(a) for a in arrays))


def run_qk(
    library: ctypes.CDLL, cuda: int, size: tuple[int, ...], dtype: str, norm: int, table: str, shift: int, extra: int
) -> tuple[int, list[np.ndarray]]:  # fmt: skip
    batch, tokens, heads, kv_heads, head = size
    make = np.random.default_rng(5)
    width = (heads + 2 * kv_heads) * head
    parameters = "float64" if dtype == "float64" else "float32"
    places = tokens + 2
    qkv = numbers(make, dtype, batch * tokens * (width + extra), shift)
    bias = numbers(make, dtype if norm else parameters, width)
    kind = DTYPES[dtype if norm else parameters][0]
    own = [numbers(make, dtype if norm else parameters, head) if norm else None for _ in range(4)]
    adjacent, columns = table.startswith("adjacent"), head if table.endswith("full") else head // 2
    each = norm == 1
    cos, sin = (
        numbers(make, parameters, (batch if each else 1) * tokens * columns) if table else None
        for _ in range(2)
    )
    out = [
        numbers(make, dtype, batch * count * places * head, shift) for count in (heads, kv_heads, kv_heads)
    ]
    for buffer in out:
        buffer.view(np.uint8)[:] = POISON
    first = [buffer[head:] if len(buffer) else buffer for buffer in out]  # from the second place on
    sizes = (ctypes.c_int64 * 8)(batch, tokens, heads, kv_heads, head, columns, width + extra, places)
    kinds = (ctypes.c_int * 6)(DTYPES[dtype][0], kind, DTYPES[parameters][0], norm, adjacent, each)
    kernel = library.pfc_test_qk(
        sizes, kinds, ctypes.c_double(1e-6), ctypes.c_void_p(address(qkv)), ctypes.c_void_p(address(bias)), pointers(*own),
        ctypes.c_void_p(address(cos)), ctypes.c_void_p(address(sin)), pointers(*first), cuda,
    )  # fmt: skip
    return kernel, out


def assert_same(one: list[np.ndarray], two: list[np.ndarray], case: object) -> None:
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), err_msg=str(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [0, 1, 2])
def test_qk_thread_by_thread(library: ctypes.CDLL, dtype: str, norm: int) -> None:
    ran = set()
    for size in (
        (2, 3, 2, 2, 64),
        (1, 5, 3, 1, 72),
        (2, 2, 1, 1, 6),
        (1, 2, 2, 0, 40),
        (2, 1, 0, 1, 128),
        (1, 7, 2, 1, 20),
    ):
        for table in ("", "adjacent", "adjacent full", "halves", "halves full"):
            for shift, extra in ((0, 0), (1, 0), (0, 3), (0, 8)):
                case = (size, dtype, norm, table, shift, extra)
                _, wanted = run_qk(library, 0, *case)
                kernel, found = run_qk(library, 1, *case)
                assert_same(wanted, found, case)
                length = size[4] // (2 if table.startswith("halves") else 1)
                assert kernel == int(length % 4 == 0 and shift == 0 and extra % 4 == 0)
                ran.add(kernel)
    assert ran == {0, 1}


def run_norm(
    library: ctypes.CDLL, cuda: int, size: tuple[int, ...], dtype: str, silu: bool, shift: int
) -> tuple[int, list[np.ndarray]]:  # fmt: skip
    batch, channels, _, spatial = size
    make = np.random.default_rng(6)
    x = numbers(make, dtype, batch * channels * spatial, shift)
    own = [numbers(make, dtype, count) for count in (channels, channels, batch * channels, batch * channels)]
    out = numbers(make, dtype, len(x), shift)
    out.view(np.uint8)[:] = POISON
    moments = np.full(2 * batch * size[2], np.nan)
    kernel = library.pfc_test_group_norm(
        (ctypes.c_int64 * 4)(*size), (ctypes.c_int * 3)(DTYPES[dtype][0], DTYPES[dtype][0], silu), ctypes.c_double(1e-5),
        ctypes.c_void_p(address(x)), pointers(*own), ctypes.c_void_p(address(out)), ctypes.c_void_p(address(moments)), cuda,
    )  # fmt: skip
    return kernel, [moments, out]


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_thread_by_thread(library: ctypes.CDLL, dtype: str) -> None:
    ran = set()
    sizes = (
        (2, 4, 2, 1),
        (1, 6, 3, 7),
        (3, 4, 1, 64),
        (1, 4, 2, 1025),
        (2, 2, 1, 4099),
        (1, 32, 32, 36),
        (1, 3, 1, 12),
    )
    for size in sizes:
        for shift in (0, 1):
            _, wanted = run_norm(library, 0, size, dtype, False, shift)
            kernel, found = run_norm(library, 1, size, dtype, False, shift)
            assert_same(wanted, found, (size, shift))
            assert kernel == int(size[3] % 4 == 0 and shift == 0)
            ran.add(kernel)
            if dtype not in ("float32", "float64"):
                continue
            # SiLU is a device's own, to its last bits.
            _, (_, smooth) = run_norm(library, 0, size, dtype, True, shift)
            _, (_, there) = run_norm(library, 1, size, dtype, True, shift)
            np.testing.assert_allclose(there, smooth, rtol=4 * np.finfo(DTYPES[dtype][1]).eps)
    assert ran == {0, 1}
