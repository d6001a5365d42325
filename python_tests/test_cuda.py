"""combine_ and combine on CUDA against CPU, to the bit: the launch, nvcc's arithmetic and the walk over real memory.

The arithmetic itself is tested on the CPU against float64 references, and the kernels' bodies thread by thread in
``test_cuda_bodies.py``; so the CPU's bits are the reference here. Tests marked ``sanitize`` are short enough for
compute-sanitizer.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from cuda_cases import DEVICE, DTYPES, ROWS, SHAPES, STATES, RowCase, compare, same_bits, step, to_device

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("row", ROWS)
def test_combine_has_the_bits_of_the_cpu(row: str, out: torch.dtype, state: torch.dtype) -> None:
    for shape in SHAPES:
        compare(RowCase(shape, state, out, **ROWS[row]))


@pytest.mark.parametrize("inp", DTYPES)
def test_combine_writes_inputs_of_every_dtype(inp: torch.dtype) -> None:
    for state, sample in itertools.product(STATES, (1028, 1027)):
        compare(RowCase((2, sample), state, torch.float32, inp, branches=2, copies=2))


@pytest.mark.sanitize
@pytest.mark.parametrize("row", ROWS)
def test_combine_at_the_edges(row: str) -> None:
    for shape in ((1, 5), (2, 7), (2, 1028), (3, 1025)):
        compare(RowCase(shape, torch.float32, torch.bfloat16, **ROWS[row]))


@pytest.mark.parametrize("state", STATES)
def test_combine_off_alignment_and_nothing_beyond(state: torch.dtype) -> None:
    """Buffers that begin one to three elements after an aligned address, inside guards that must stay as they are."""
    case = RowCase((2, 1030), state, torch.bfloat16, slots=(0,), keep=1, copies=2)
    names = ("x", "y_out", "inp", "slots", "out")
    moved = (
        [dict.fromkeys(names, shift) for shift in (1, 2, 3)]
        + [{n: 1} for n in names]
        + [{n: 2} for n in names]
    )
    for shifts, draws in itertools.product(moved, ((), (4,))):
        placed = replace(case, draws=draws)
        cpu = placed.make()
        cuda, guards = to_device(cpu), {}
        for name, shift in shifts.items():
            tensor = cpu[name]
            assert tensor is not None
            guards[name] = torch.full((tensor.numel() + 16,), 7.0, dtype=tensor.dtype, device=DEVICE)
            inside = guards[name][shift : shift + tensor.numel()].view(tensor.shape)
            inside.copy_(tensor)
            cuda[name] = inside
        step(cuda, placed.table())
        step(cpu, placed.table())
        for name, expected in cpu.items():
            if expected is not None:
                same_bits(expected, cuda[name], (name, shifts, draws))  # type: ignore[arg-type]
        for name, shift in shifts.items():
            inside = cpu[name].numel()  # type: ignore[union-attr]
            around = torch.cat([guards[name][:shift], guards[name][shift + inside :]])
            assert bool((around == 7.0).all()), f"{name} was written outside, {shifts}"


def test_combine_reads_any_strides() -> None:
    case = RowCase((4, 6, 35), out=torch.float16, branches=2, copies=2, own_point=True, p=0.3)
    cpu = case.make()
    spread = to_device(cpu)
    out, point = spread["out"], spread["y"]
    assert out is not None and point is not None
    spread["out"] = out.transpose(1, 2).contiguous().transpose(1, 2)
    spread["y"] = torch.stack([point, point], dim=-1)[..., 0]
    assert not spread["out"].is_contiguous() and not spread["y"].is_contiguous()
    step(spread, case.table())
    step(cpu, case.table())
    same_bits(cpu["x"], spread["x"])  # type: ignore[arg-type]
    same_bits(cpu["inp"], spread["inp"])  # type: ignore[arg-type]

    cpu, expanded = case.make(), to_device(case.make())
    one = torch.linspace(-1, 1, 35, dtype=torch.float16)
    cpu["out"], expanded["out"] = one.expand(8, 6, 35), one.to(DEVICE).expand(8, 6, 35)
    step(expanded, case.table())
    step(cpu, case.table())
    same_bits(cpu["x"], expanded["x"])  # type: ignore[arg-type]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("row", ["Euler, guided", "multistep", "guided, two draws", "no evaluation"])
def test_functional_combine(row: str, state: torch.dtype, poison: None) -> None:
    for shape in ((2, 7), (3, 1028)):
        case = RowCase(shape, state, torch.bfloat16, **{**ROWS[row], "copies": 0})
        made = case.make()
        moved = to_device(made)
        results = []
        for tensors in (made, moved):
            slots = [] if tensors["slots"] is None else list(tensors["slots"])
            outs = [] if tensors["out"] is None else [tensors["out"]]
            results.append(
                torch.ops.pyflowcore.combine(
                    tensors["x"],
                    tensors["y"],
                    slots,
                    outs,
                    tensors["guidance"],
                    tensors["seeds"],
                    case.table(),
                    1,
                )
            )
        for name, cpu, cuda in zip("xyd", *results, strict=True):
            same_bits(cpu, cuda, (name, shape))
        same_bits(case.make()["x"], moved["x"], "the state is left alone")  # type: ignore[arg-type]


def test_combine_of_nothing() -> None:
    for shape in ((0, 4), (3, 0)):
        compare(RowCase(shape, branches=2, copies=2))
