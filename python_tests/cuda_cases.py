"""What the tests on a GPU share: rows of every kind with their tensors, and the comparison with the CPU, to the bit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from pyflowcore import _core

DEVICE = torch.device("cuda")
RECORD = _core.record
STATES = (torch.float32, torch.float64)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Shapes of a batch around a vector, a warp, a block of threads and a tile; B of 1 and odd; many samples smaller than a vector.
SHAPES = ((1, 1), (1, 3), (3, 4), (2, 7), (5, 3, 11), (2, 1023), (2, 1024), (3, 1025), (1, 2048), (2, 2049), (3, 4, 33, 32),
          (700, 2), (1030, 5), (17, 8))  # fmt: skip


def same_bits(cpu: Tensor, cuda: Tensor, what: object = "") -> None:
    assert cpu.dtype == cuda.dtype and cpu.shape == cuda.shape, what
    bits = BITS[cpu.element_size()]
    left, right = cpu.contiguous().view(bits).flatten(), cuda.cpu().contiguous().view(bits).flatten()
    different = torch.nonzero(left != right).flatten()
    assert different.numel() == 0, (
        f"{what}: {different.numel()} of {left.numel()} elements differ, first {different[:4].tolist()}: "
        f"CPU {cpu.flatten()[different[:4]].tolist()}, CUDA {cuda.flatten()[different[:4].to(cuda.device)].tolist()}"
    )


@dataclass
class RowCase:
    """A row and the tensors that it takes; everything is made on the CPU from one generator, then copied."""

    shape: tuple[int, ...] = (2, 1028)
    state: torch.dtype = torch.float32
    out: torch.dtype = torch.float32
    inp: torch.dtype | None = None
    branches: int = 1
    split: bool = False  # the unconditional branch as out2
    per_sample: bool = False
    per_branch: bool = False
    draws: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    keep: int = -1
    p: float = 0.0
    a: float = 1.0
    own_point: bool = False
    point_out: bool = True
    copies: int = 0
    in_scale: float = 1.0
    tensors: dict[str, Tensor | None] = field(default_factory=dict)

    def table(self) -> Tensor:
        """Three rows, of which the middle one is the case's."""
        table = torch.zeros(3, RECORD["width"], dtype=torch.float64)
        row = table[1]
        row[RECORD["store"]] = self.keep
        row[RECORD["in_scale"]] = self.in_scale
        row[RECORD["p"]], row[RECORD["q"]] = self.p, -0.7
        row[RECORD["a"]], row[RECORD["a_minus_1"]] = self.a, self.a - 1.0
        row[RECORD["c"]], row[RECORD["c_minus_1"]] = 0.3, -0.7
        if self.branches:
            row[RECORD["evaluates"]], row[RECORD["b_new"]], row[RECORD["e_new"]] = 1.0, 0.11, -0.23
        for i, slot in enumerate(self.slots):
            row[RECORD["b"] + slot], row[RECORD["e"] + slot] = 0.31 + i, -0.17 * (i % 2)
        for i, draw in enumerate(self.draws):
            row[RECORD["draw"] + i], row[RECORD["s"] + i], row[RECORD["r"] + i] = (
                draw,
                0.5 - 0.5 * (i == 1),
                0.25 * i,
            )
        return table

    def make(self, seed: int = 0) -> dict[str, Tensor | None]:
        g = torch.Generator().manual_seed(seed)
        batch, rest = self.shape[0], self.shape[1:]

        def normal(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

        made: dict[str, Tensor | None] = dict.fromkeys(
            ("y", "y_out", "inp", "slots", "out", "out2", "guidance", "seeds")
        )
        made["x"] = normal(*self.shape, dtype=self.state)
        if self.own_point:
            made["y"] = normal(*self.shape, dtype=self.state)
        if self.point_out:
            made["y_out"] = torch.full(self.shape, torch.nan, dtype=self.state)
        if self.copies:
            made["inp"] = torch.full((self.copies * batch, *rest), torch.nan, dtype=self.inp or self.out)
        count = max([*self.slots, self.keep]) + 1 if self.slots or self.keep >= 0 else 0
        if count:
            made["slots"] = normal(count, *self.shape, dtype=self.state)
        if self.branches:
            conditional = self.branches - 1 if self.split else self.branches
            made["out"] = normal(conditional * batch, *rest, dtype=self.out)
            if self.split:
                made["out2"] = normal(*self.shape, dtype=self.out)
        if self.branches > 1:
            width = batch if self.per_sample else 1
            shape = (3, self.branches - 1, width) if self.per_branch else (3, width)
            made["guidance"] = normal(*shape, dtype=self.state)
        if self.draws:
            made["seeds"] = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g)
        return made


ROWS = {
    "Euler": {},
    "Euler, guided": {"branches": 2, "copies": 2},
    "two calls": {"branches": 2, "split": True, "copies": 1},
    "per-sample guidance": {"branches": 2, "per_sample": True, "copies": 2, "in_scale": 0.5},
    "several conditions": {"branches": 4, "per_branch": True, "per_sample": True, "copies": 1},
    "multistep": {"slots": (0, 2, 3), "keep": 1, "p": 0.4, "a": 0.2},
    "guided multistep, own point": {
        "branches": 2, "slots": (0,), "keep": 1, "p": -0.4, "own_point": True, "copies": 2,
    },
    "stochastic": {"draws": (3,), "a": 0.9, "copies": 1},
    "guided, two draws": {"branches": 2, "draws": (7, 0), "copies": 2},
    "prologue": {"branches": 0, "draws": (0,), "a": 0.0, "copies": 2, "in_scale": 2.0},
    "no evaluation": {"branches": 0, "copies": 1},
    "many slots": {"slots": tuple(range(15)), "keep": 15},
}  # fmt: skip


def to_device(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if t is None else t.to(DEVICE, copy=True) for name, t in tensors.items()}


def need_memory(gigabytes: float) -> None:
    """Skips the test where the GPU has less."""
    # Tensors of tests that failed before may still hang in their tracebacks.
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory, there are {free:.1f}")


def moved(tensor: Tensor, by: int, device: torch.device = DEVICE) -> Tensor:
    """A copy that begins ``by`` elements after an aligned address."""
    memory = torch.zeros(tensor.numel() + by, dtype=tensor.dtype, device=device)
    return memory[by:].view(tensor.shape).copy_(tensor)


class Guarded:
    """Memory for a tensor, ``by`` elements off alignment, in between elements that must stay as they are."""

    def __init__(self, like: Tensor, by: int) -> None:
        self._memory = torch.full((like.numel() + 16,), 7.0, dtype=like.dtype, device=DEVICE)
        self._ends = by, by + like.numel()
        self.tensor = self._memory[by : by + like.numel()].view(like.shape).copy_(like)

    def check(self, what: object = "") -> None:
        begin, end = self._ends
        outside = torch.cat([self._memory[:begin], self._memory[end:]])
        assert bool((outside == 7.0).all()), f"{what}: written outside"


Tensors = dict[str, Tensor | None]


def replays(run: Callable[[Tensors], Sequence[Tensor]], make: Callable[[int], Tensors]) -> None:
    """A captured call, replayed, has the CPU's bits of what its tensors hold by then; a capture refuses whoever waits for the
    device or uses another stream. ``make`` gives tensors on the CPU from a seed; ``run`` may write them and returns results.
    """
    fixed = to_device(make(0))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(fixed)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(fixed)
    for seed in (1, 2):
        given = make(seed)
        for name, tensor in given.items():
            if tensor is not None:
                fixed[name].copy_(tensor)  # type: ignore[union-attr]
        for result in results:
            if not any(result is tensor for tensor in fixed.values()):
                result.fill_(torch.nan)
        graph.replay()
        for cpu, cuda in zip(run(given), results, strict=True):
            same_bits(cpu, cuda, seed)


def step(tensors: dict[str, Tensor | None], table: Tensor, row: int = 1) -> None:
    order = ("x", "y", "y_out", "inp", "slots", "out", "out2", "guidance", "seeds")
    torch.ops.pyflowcore.combine_(*(tensors[name] for name in order), table, row)


def compare(case: RowCase, seed: int = 0) -> None:
    cpu = case.make(seed)
    cuda = to_device(cpu)
    step(cuda, case.table())
    step(cpu, case.table())
    for name, expected in cpu.items():
        if expected is not None:
            same_bits(expected, cuda[name], f"{name} of {case}")  # type: ignore[arg-type]
