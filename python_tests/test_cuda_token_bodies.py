"""The CUDA kernels on tokens and feature maps, thread by thread on the CPU, against the CPU kernels, to the bit."""

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


def run_patches(
    library: ctypes.CDLL, cuda: int, size: tuple[int, ...], first: int, dtypes: tuple[str, str], to_tokens: int,
    shifts: tuple[int, int],
) -> tuple[int, np.ndarray]:  # fmt: skip
    """``shifts``: elements by which the image and the tokens begin off alignment."""
    make = np.random.default_rng(7)
    count = int(np.prod(size))
    shift, to_shift = shifts if to_tokens else shifts[::-1]
    given = numbers(make, dtypes[0], count, shift)
    whole = numbers(make, dtypes[1], count + 8, 0)
    whole.view(np.uint8)[:] = POISON
    kinds = (ctypes.c_int * 4)(first, to_tokens, DTYPES[dtypes[0]][0], DTYPES[dtypes[1]][0])
    kernel = library.pfc_test_patches(
        (ctypes.c_int64 * 6)(*size), kinds, ctypes.c_void_p(address(given)), ctypes.c_void_p(address(whole[to_shift:])), cuda
    )  # fmt: skip
    outside = np.concatenate((whole[:to_shift], whole[to_shift + count :]))
    assert (outside.view(np.uint8) == POISON).all()
    return kernel, whole


def wanted_run(
    size: tuple[int, ...], first: int, dtypes: tuple[str, str], to_tokens: int, shifts: tuple[int, int]
) -> int:
    """The longest run that divides a patch's line and whose accesses are aligned in an image beside aligned tokens."""
    widths = [np.dtype(DTYPES[name][1]).itemsize for name in (dtypes if to_tokens else dtypes[::-1])]
    head = -shifts[1] % (4 if widths[1] < 8 else 2)
    for run in (4, 2):
        aligned = shifts[0] * widths[0] % min(16, run * widths[0]) == 0
        if first and size[5] % run == 0 and head % run == 0 and aligned:
            return run
    return 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1])
def test_patches_thread_by_thread(library: ctypes.CDLL, dtype: str, first: int) -> None:
    ran = set()
    sizes = (
        (2, 4, 3, 5, 2, 2),
        (1, 3, 2, 2, 4, 4),
        (2, 1, 3, 1, 1, 1),
        (1, 5, 2, 3, 3, 2),
        (2, 3, 1, 7, 1, 5),
        (1, 16, 6, 11, 2, 2),
        (1, 2, 2, 2, 1, 8),
        (3, 1, 1, 1, 2, 6),
    )
    for size in sizes:
        for to in DTYPES:
            for shifts in ((0, 0), (1, 0), (0, 1), (2, 2), (0, 2), (3, 3)):
                for to_tokens in (0, 1):
                    case = (size, first, (dtype, to), to_tokens, shifts)
                    _, wanted = run_patches(library, 0, *case)
                    kernel, found = run_patches(library, 1, *case)
                    assert_same([wanted], [found], case)
                    assert kernel == wanted_run(*case), case
                    ran.add(kernel)
    assert ran == ({1, 2, 4} if first else {1})


def test_patch_places_beyond_32_bits(library: ctypes.CDLL) -> None:
    for size in ((3, 4, 2**14, 2**15, 2, 2), (2, 2**33, 3, 5, 1, 2), (2**36, 3, 1, 2, 2, 5)):
        _, channels, rows, columns, high, wide = size
        numel = int(np.prod([int(n) for n in size], dtype=object))
        assert numel > 2**31
        for first in (0, 1):
            for at in (0, 2**31 - 5, 2**32 - 5, numel // 2 - 5, numel - 11):
                wanted = []
                for n in range(at, at + 11):
                    token, inside = divmod(n, channels * high * wide)
                    row, j = divmod(token, columns)
                    b, i = divmod(row, rows)
                    if first:
                        rest, v = divmod(inside, wide)
                        c, u = divmod(rest, high)
                    else:
                        rest, c = divmod(inside, channels)
                        u, v = divmod(rest, wide)
                    line = (b * channels + c) * rows * high + i * high + u
                    wanted.append(line * columns * wide + j * wide + v)
                for counted in (0, 1):
                    found = (ctypes.c_int64 * 11)()
                    library.pfc_test_patch_places(
                        (ctypes.c_int64 * 6)(*size), (ctypes.c_int * 4)(first, 1, 0, 0), ctypes.c_int64(at), ctypes.c_int64(11),
                        counted, found,
                    )  # fmt: skip
                    assert list(found) == wanted, (size, first, at, counted)


TIMES = ((1000.0, 1e4, 0.0, 0), (1.0, 1e4, 0.5, 1), (1e9, 50.0, -1.0, 0))  # scale, period, last, sines first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", ["float32", "float64"])
def test_timesteps_thread_by_thread(library: ctypes.CDLL, dtype: str, to: str) -> None:
    ran = set()
    for count, half in ((1, 1), (3, 7), (1, 128), (50, 128), (7, 300), (525, 500)):
        for scale, period, last, sine_first in TIMES:
            made = []
            for cuda in (0, 1):
                t = numbers(np.random.default_rng(8), dtype, count)
                out = numbers(np.random.default_rng(8), to, 2 * count * half)
                out.view(np.uint8)[:] = POISON
                kinds = (ctypes.c_int * 3)(DTYPES[dtype][0], DTYPES[to][0], sine_first)
                ran.add(library.pfc_test_timesteps(
                    ctypes.c_int64(count), ctypes.c_int64(half), kinds, (ctypes.c_double * 3)(scale, period, last),
                    ctypes.c_void_p(address(t)), ctypes.c_void_p(address(out)), cuda,
                ))  # fmt: skip
                made.append(out)
            assert_same(made[:1], made[1:], (count, half, scale, last))
            assert np.isfinite(made[0]).all() and (np.abs(made[0]) <= 1).all()
    assert ran == {-1, 1, 4}


def test_times_that_are_not_finite(library: ctypes.CDLL) -> None:
    t = np.array([np.nan, np.inf, -np.inf, 0.0, 1e300], np.float64)
    made = []
    for cuda in (0, 1):
        made.append(np.zeros((5, 4), np.float64))
        library.pfc_test_timesteps(
            ctypes.c_int64(5), ctypes.c_int64(2), (ctypes.c_int * 3)(1, 1, 0), (ctypes.c_double * 3)(1.0, 1e4, 0.0),
            ctypes.c_void_p(address(t)), ctypes.c_void_p(address(made[cuda])), cuda,
        )  # fmt: skip
    np.testing.assert_array_equal(*made)
    assert np.isnan(made[1][[0, 1, 2, 4]]).all() and made[1][3].tolist() == [1.0, 1.0, 0.0, 0.0]
