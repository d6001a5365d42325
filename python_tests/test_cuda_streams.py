"""CUDA as a place: the caller's stream and device, captured graphs, more than 2^31 elements, and what is refused."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import DEVICE, RowCase, need_memory, same_bits, step, to_device

import pyflowcore as pfc

pytestmark = pytest.mark.gpu


def test_the_callers_stream_is_used() -> None:
    """What the caller's stream writes late is what the kernel reads; another stream would be too early."""
    case = RowCase((4, 4096), branches=2, copies=2)
    cpu, cuda = case.make(), to_device(case.make())
    step(to_device(cpu), case.table())  # the first call loads the kernel, which may wait for the device
    source = {name: cuda[name].clone() for name in ("x", "out")}  # type: ignore[union-attr]
    for name in source:
        cuda[name].fill_(torch.nan)  # type: ignore[union-attr]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, tensor in source.items():
            cuda[name].copy_(tensor)  # type: ignore[union-attr]
        step(cuda, case.table())
        assert not stream.query(), "the call waited for the device"
    stream.synchronize()
    step(cpu, case.table())
    same_bits(cpu["x"], cuda["x"])  # type: ignore[arg-type]
    same_bits(cpu["inp"], cuda["inp"])  # type: ignore[arg-type]


def test_a_captured_step_replays_with_new_contents() -> None:
    case = RowCase((4, 4096), branches=2, copies=2, draws=(2,), slots=(0,), keep=1)
    table, seeds = case.table(), torch.arange(4, device=DEVICE)
    fixed = to_device(case.make())
    fixed["seeds"] = seeds
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(fixed, table)  # loads the kernel
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(fixed, table)
    for seed in (1, 2):
        cpu = case.make(seed)
        cpu["seeds"] = torch.arange(4) + seed
        for name, tensor in cpu.items():
            if tensor is not None:
                fixed[name].copy_(tensor)  # type: ignore[union-attr]
        graph.replay()
        step(cpu, table)
        for name, tensor in cpu.items():
            if tensor is not None:
                same_bits(tensor, fixed[name], (name, seed))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_device_is_used() -> None:
    case = RowCase(branches=2, copies=2)
    cpu = case.make()
    second = {name: None if t is None else t.to("cuda:1") for name, t in cpu.items()}
    assert torch.cuda.current_device() == 0
    step(second, case.table())
    step(cpu, case.table())
    assert torch.cuda.current_device() == 0
    same_bits(cpu["x"], second["x"])  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- large and refused
@pytest.mark.parametrize("sample", [1028, 1025])
def test_more_than_two_billion_elements(sample: int) -> None:
    """Samples at both ends and at 2^31 elements of a batch have the bits that they have alone."""
    need_memory(19)
    batch = 2**31 // sample + 3
    at = torch.tensor([0, 1, 2**31 // sample - 1, 2**31 // sample, batch - 2, batch - 1])
    x = torch.ops.pyflowcore.randn(torch.arange(batch, device=DEVICE), [sample], 0, 0, torch.float32)
    few = torch.ops.pyflowcore.randn(at, [sample], 0, 0, torch.float32)
    same_bits(few, x[at.to(DEVICE)], "randn")
    out = torch.ops.pyflowcore.randn(torch.arange(batch, device=DEVICE), [sample], 0, 1, torch.bfloat16)
    few_out = torch.ops.pyflowcore.randn(at, [sample], 0, 1, torch.bfloat16)
    for draws in ((), (3,)):
        case = RowCase((batch, sample), out=torch.bfloat16, draws=draws, point_out=False)
        seeds = torch.arange(batch, device=DEVICE) if draws else None
        nothing = dict.fromkeys(("y", "y_out", "inp", "slots", "out2", "guidance"))
        step({**nothing, "x": x, "out": out, "seeds": seeds}, case.table())
        step({**nothing, "x": few, "out": few_out, "seeds": at if draws else None}, case.table())
        same_bits(few, x[at.to(DEVICE)], draws)


def test_mixed_devices_are_refused() -> None:
    for name in ("out", "slots", "y_out", "inp", "guidance", "seeds"):
        case = RowCase(branches=2, copies=2, slots=(0,), draws=(0,))
        cuda = to_device(case.make())
        cuda[name] = cuda[name].cpu()  # type: ignore[union-attr]
        with pytest.raises((RuntimeError, ValueError), match=name):
            step(cuda, case.table())
    case = RowCase()
    mixed = case.make()
    mixed["out"] = mixed["out"].to(DEVICE)  # type: ignore[union-attr]
    with pytest.raises((RuntimeError, ValueError), match="x is not on CUDA"):
        step(mixed, case.table())
    with pytest.raises((RuntimeError, ValueError), match="table"):
        step(to_device(case.make()), case.table().to(DEVICE))
    with pytest.raises((RuntimeError, ValueError), match="t is on another device"):
        torch.ops.pyflowcore.interpolate(
            torch.zeros(2, 3, device=DEVICE),
            torch.zeros(2),
            torch.zeros(2, 3, device=DEVICE),
            None,
            0,
            0.0,
            0.0,
            0,
            3,
            0,
        )


def test_the_cuda_library_is_live() -> None:
    assert pfc._library.cuda.live, pfc._library.cuda.reason
