"""The CUDA kernels' bodies, run thread by thread on the CPU, against the CPU kernels, to the bit."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from cuda_on_cpu import SIZES, CombineCall
from cuda_on_cpu import library as build

DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
WIDTH = 56
# Offsets into a row of a plan's table: csrc/core/row.hpp.
EVALUATES, STORE, IN_SCALE, P, Q, A, A1, C, C1, B_NEW, E_NEW, B, E = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 28
DRAW, S, R = 44, 48, 52


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build()


class Arena:
    """Buffers inside one block of bytes that is otherwise a fixed pattern, so that a stray write shows."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.parts: list[np.ndarray] = []

    def add(self, count: int, dtype: str, shift: int = 0, poison: bool = False) -> tuple[int, int]:
        """(buffer number, byte offset) of ``count`` elements that begin ``shift`` elements after a 64-byte boundary."""
        size = BYTES[dtype]
        raw = np.full(count * size + 64 * 4, 0xA5, dtype=np.uint8)
        start = -raw.ctypes.data % 64 + 64 + shift * size
        if not poison:
            values = self.random.standard_normal(count)
            if dtype == "bfloat16":
                bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            else:
                bits = values.astype({"float16": np.float16}.get(dtype, dtype))
            raw[start : start + count * size] = bits.view(np.uint8)
        self.parts.append(raw)
        return len(self.parts) - 1, start


@dataclass
class Case:
    """One row on one state; shifts move single buffers off their alignment, in elements."""

    batch: int
    sample: int
    state: str = "float32"
    out: str = "float32"
    inp: str | None = None
    branches: int = 1
    per_sample: bool = False
    per_branch: bool = False
    draws: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    keep: int | None = None
    p: float = 0.0
    a: float = 1.0
    own_point: bool = False
    point_out: bool = True
    copies: int = 0
    functional: bool = False
    in_scale: float = 1.0
    mixed: bool = False
    mixes_point: bool = False
    momentum: bool = False
    shifts: dict[str, int] = field(default_factory=dict)
    seed: int = 0


def run_combine(library: ctypes.CDLL, case: Case, cuda: bool) -> tuple[int, list[np.ndarray]]:
    arena, numel = Arena(case.seed), case.batch * case.sample
    call = CombineCall()
    pins: list[np.ndarray] = []

    def buffer(name: str, dtype: str, count: int = numel, poison: bool = False) -> int:
        part, start = arena.add(count, dtype, case.shifts.get(name, 0), poison)
        return arena.parts[part].ctypes.data + start

    record = np.zeros(WIDTH)
    record[[EVALUATES, STORE, IN_SCALE, Q]] = (
        case.branches > 0,
        -1 if case.keep is None else case.keep,
        case.in_scale,
        -0.7,
    )
    record[[P, A, A1, C, C1]] = case.p, case.a, case.a - 1.0, 0.3, -0.7
    if case.branches:
        record[[B_NEW, E_NEW]] = 0.11, -0.23
    for i, slot in enumerate(case.slots):
        record[B + slot], record[E + slot] = 0.31 + i, -0.17 * (i % 2)
    record[DRAW : DRAW + 4] = -1
    for i, draw in enumerate(case.draws):
        record[DRAW + i], record[S + i], record[R + i] = draw, 0.5 - 0.5 * (i == 1), 0.25 * i
    pins.append(record)
    call.record = record.ctypes.data
    call.batch, call.sample, call.copies, call.branches = case.batch, case.sample, case.copies, case.branches
    call.state_dtype, call.out_dtype = DTYPES[case.state], DTYPES[case.out]
    call.inp_dtype = DTYPES[case.inp or case.out]
    call.x = call.point = buffer("x", case.state)
    call.x_out = buffer("x_out", case.state, poison=True) if case.functional else call.x
    if case.own_point:
        call.point = buffer("point", case.state)
    if case.point_out:
        call.point_out = buffer("point_out", case.state, poison=True)
    if case.copies:
        call.inp = buffer("inp", case.inp or case.out, case.copies * numel, poison=True)
    if case.slots or case.keep is not None:
        count = max([*case.slots, case.keep or 0]) + 1
        base = buffer("slots", case.state, count * numel)
        for k in range(count):
            call.slot[k] = base + k * numel * BYTES[case.state]
        if case.keep is not None:
            call.keep = call.slot[case.keep]
    if case.branches:
        base = buffer("out", case.out, case.branches * numel)
        for j in range(case.branches):
            call.branch[j] = base + j * numel * BYTES[case.out]
    if case.mixed:
        call.mixed, call.mixes_point = 1, int(case.mixes_point)
        call.scale = buffer("scale", case.state, (case.branches + 1 + case.mixes_point) * case.batch)
        call.scale_branch_stride, call.scale_sample_stride = case.batch, 1
        if case.momentum:
            call.momentum = buffer("momentum", case.state)
    elif case.branches > 1:
        width = case.batch if case.per_sample else 1
        call.scale = buffer("scale", case.state, width * (case.branches - 1 if case.per_branch else 1))
        call.scale_branch_stride = width if case.per_branch else 0
        call.scale_sample_stride = 1 if case.per_sample else 0
    seeds = np.random.default_rng(5).integers(-(2**63), 2**63 - 1, case.batch, dtype=np.int64)
    pins.append(seeds)
    if case.draws:
        call.seeds = seeds.ctypes.data
    return library.pfc_test_combine(ctypes.byref(call), int(cuda)), arena.parts


def assert_same(cpu: list[np.ndarray], cuda: list[np.ndarray], what: object) -> None:
    for i, (expected, got) in enumerate(zip(cpu, cuda, strict=True)):
        # Alignment may move the buffer inside its bytes, by the same amount everywhere else.
        begin = (-expected.ctypes.data % 64, -got.ctypes.data % 64)
        length = min(len(expected) - begin[0], len(got) - begin[1]) - 64
        different = np.flatnonzero(
            expected[begin[0] : begin[0] + length] != got[begin[1] : begin[1] + length]
        )
        assert different.size == 0, f"{what}: buffer {i} differs first at byte {different[:1]}"


def check_combine(library: ctypes.CDLL, case: Case) -> int:
    _, expected = run_combine(library, case, cuda=False)
    kernel, got = run_combine(library, case, cuda=True)
    assert_same(expected, got, case)
    return kernel


ROWS = {
    "Euler": {},
    "Euler, guided": {"branches": 2, "copies": 2},
    "per-sample guidance": {"branches": 2, "per_sample": True, "copies": 2, "in_scale": 0.5},
    "several conditions": {"branches": 3, "per_branch": True, "copies": 3},
    "several conditions, per sample": {"branches": 4, "per_branch": True, "per_sample": True},
    "multistep": {"slots": (0, 2, 3), "keep": 1, "p": 0.4, "a": 0.2},
    "guided multistep, own point": {
        "branches": 2, "slots": (0,), "keep": 1, "p": -0.4, "own_point": True, "copies": 2,
    },
    "reads the slot that it writes": {"slots": (1, 2), "keep": 1},
    "stochastic": {"draws": (3,), "a": 0.9, "copies": 1},
    "guided, two draws": {"branches": 2, "draws": (7, 0), "copies": 2},
    "prologue": {"branches": 0, "draws": (0,), "a": 0.0, "copies": 2, "in_scale": 2.0},
    "no evaluation": {"branches": 0, "copies": 1},
    "functional": {"functional": True, "branches": 2, "slots": (0, 1)},
    "many slots": {"slots": tuple(range(15)), "keep": 15},
    "weights": {"branches": 2, "mixed": True, "copies": 2},
    "weights of several": {"branches": 4, "mixed": True, "copies": 1, "slots": (0,), "keep": 1},
    "weights and point": {"branches": 2, "mixed": True, "mixes_point": True, "own_point": True, "draws": (2,)},
    "weights and state as point": {"branches": 3, "mixed": True, "mixes_point": True, "a": 0.0},
    "weights and momentum": {
        "branches": 2, "mixed": True, "mixes_point": True, "momentum": True, "p": 0.3, "copies": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("state", ["float32", "float64"])
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("row", ROWS)
def test_combine_thread_by_thread(library: ctypes.CDLL, row: str, out: str, state: str) -> None:
    for batch, sample in ((1, 1), (3, 4), (2, 7), (5, 260), (2, 1028), (1, 2051), (300, 2)):
        check_combine(library, Case(batch, sample, state, out, **ROWS[row]))


def test_combine_at_every_size(library: ctypes.CDLL) -> None:
    for sample, (row, settings) in itertools.product(SIZES, ROWS.items()):
        kernel = check_combine(library, Case(2, sample, "float32", "bfloat16", **settings))
        if sample % 4 == 0:
            assert kernel % 10 == 1, f"{row}: aligned samples of {sample} are not vectorised"


def test_combine_in_every_input_dtype(library: ctypes.CDLL) -> None:
    for state, inp in itertools.product(("float32", "float64"), DTYPES):
        for sample in (1028, 1027):
            check_combine(library, Case(2, sample, state, "float32", inp, branches=2, copies=2))


def test_combine_off_alignment(library: ctypes.CDLL) -> None:
    names = ("x", "point_out", "inp", "slots", "out")
    settings = {"branches": 1, "copies": 1, "slots": (0,), "keep": 1}
    for state in ("float32", "float64"):
        for sample in (1028, 1030):
            for shift in (1, 2, 3):
                # All buffers shifted alike: vectors after a head. One alone: element by element.
                kernel = check_combine(
                    library, Case(2, sample, state, shifts=dict.fromkeys(names, shift), **settings)
                )
                assert kernel % 10 == (1 if sample * 2 % 4 == 0 else 0) or state == "float64"
                for name in names:
                    check_combine(library, Case(2, sample, state, shifts={name: shift}, **settings))
                check_combine(library, Case(2, sample, state, draws=(1,), shifts=dict.fromkeys(names, shift)))


def test_combine_uses_every_kernel(library: ctypes.CDLL) -> None:
    ran = {
        check_combine(library, Case(2, sample, branches=branches, draws=draws))
        for sample, branches, draws in itertools.product((8, 7), (0, 1, 2, 3), ((), (1,)))
    }
    assert ran == {101, 111, 201, 211, 11, 10}


@pytest.mark.parametrize("dtype", DTYPES)
def test_randn_thread_by_thread(library: ctypes.CDLL, dtype: str) -> None:
    for (batch, sample), shift in itertools.product([*((2, s) for s in SIZES), (700, 2), (300, 4)], (0, 1)):
        seeds = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, batch, dtype=np.int64)
        parts = []
        for cuda in (0, 1):
            arena = Arena(0)
            _, start = arena.add(batch * sample, dtype, shift, poison=True)
            out = arena.parts[0].ctypes.data + start
            vector = library.pfc_test_normals(
                batch, sample, seeds.ctypes.data, 3, 2**32 - 1, DTYPES[dtype], out, cuda
            )
            parts.append(arena.parts)
        assert_same(*parts, (dtype, batch, sample, shift))
        assert vector == (sample % 4 == 0 and (shift == 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drawn", [False, True])
def test_interpolate_thread_by_thread(library: ctypes.CDLL, drawn: bool, dtype: str) -> None:
    sizes = [*((2, s) for s in SIZES), (1100, 1), (700, 2), (600, 4), (3, 2052)]
    kinds = itertools.cycle(
        itertools.product(((0, 0.0, 0.0), (1, 0.0, 0.0), (2, 0.1, 20.0)), range(5), (0, 1))
    )
    for (batch, sample), shift in itertools.product(sizes, (0, 1)):
        for _ in range(3):
            (path, a, b), prediction, double = next(kinds)
            seeds = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, batch, dtype=np.int64)
            t = (
                np.random.default_rng(2)
                .uniform(0.01, 0.99, batch)
                .astype(np.float64 if double else np.float32)
            )
            parts = []
            for cuda in (0, 1):
                arena = Arena(7)
                count = batch * sample
                made = [arena.add(count, dtype, shift), arena.add(count, dtype, 0)]
                made += [arena.add(count, dtype, shift, poison=True) for _ in range(2)]
                data, noise, point, target = (arena.parts[i].ctypes.data + start for i, start in made)
                library.pfc_test_interpolate(
                    batch, sample, DTYPES[dtype], path, a, b, prediction, data, None if drawn else noise,
                    seeds.ctypes.data if drawn else None, 3, 9, t.ctypes.data, double, point, target, cuda,
                )  # fmt: skip
                parts.append(arena.parts)
            assert_same(*parts, (dtype, batch, sample, shift, path, prediction, double))
