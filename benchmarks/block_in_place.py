"""Gated residuals that are written where x lies, against PyTorch's in-place lines. The rest is in block.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.block import _CPU_SIZES, _CUDA_SIZES, _norm, _Operands, _operands
from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled
from benchmarks.registry import Arm, Built, Case, benchmark
from pyflowcore.ops import block


def _moved(o: _Operands) -> torch.Tensor:
    return o.x.addcmul_(o.gate[:, None], o.y)


def _moved_norm(o: _Operands) -> torch.Tensor:
    return _norm(_moved(o), o)


# Ours, the lines it replaces, tensors of x's size that are read and written.
_KINDS: dict[str, tuple[Callable[[_Operands], object], Callable[[_Operands], object], int, int]] = {
    "gate_residual_": (lambda o: block.gate_residual_(o.x, o.y, o.gate), _moved, 2, 1),
    "gate_residual_norm_": (
        lambda o: block.gate_residual_norm_(o.x, o.y, o.gate, o.shift, o.scale), _moved_norm, 2, 2
    ),
}  # fmt: skip


def _check(name: str, dtype: torch.dtype, device: str) -> None:
    """Both on copies of the same numbers: what is returned, and what x has become."""
    ours, eager, *_ = _KINDS[name]
    operands = _operands(1 << 14, dtype, device)
    start = operands.x.clone()
    results = []
    for call in (ours, eager):
        operands.x = start.clone()
        results.append((call(operands), operands.x))
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def _case(name: str, n: int, dtype: torch.dtype, options: Options) -> Case:
    ours, eager, reads, writes = _KINDS[name]
    one = _operands(n, dtype, "meta").x
    size = one.numel() * one.element_size()
    short = str(dtype).removeprefix("torch.")
    label = f"{name}, {show_size(one.numel())} elements, {short}"
    heat, sets = sets_for((reads + writes - 1) * size, options.device)  # x is read and written

    def build() -> Built:
        operands = [_operands(n, dtype, options.device) for _ in range(sets)]
        arms = [
            Arm(name, "candidate", [functools.partial(ours, one) for one in operands]),
            Arm("eager", "baseline", [functools.partial(eager, one) for one in operands]),
        ]
        skipped = {}
        fast = compiled(options, label, eager, operands[0])
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            arms.append(Arm("torch.compile", "baseline", [functools.partial(fast, one) for one in operands]))
        arms += copy_arms((reads + writes) * size, options.device, options.threads, rotate=heat == "rotated")
        return Built(arms, skipped, functools.partial(_check, name, dtype, options.device))

    params = {"kind": name, "n": one.numel(), "dtype": short}
    target = "at most 1.3 times the copy" if n == 1 << 22 and dtype == torch.float32 else ""
    return Case(label, params, reads * size, writes * size, 2 * one.numel(), heat, build, target=target)


@benchmark(
    "block_in_place",
    summary="Gated residuals of [4, N, 1024] into x, with the norm of the result and without.",
    least="x read and written once, y read once, the norm written once",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """Both in float32, and in bfloat16."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for dtype in (torch.float32, torch.bfloat16):
            for name in _KINDS:
                yield _case(name, n, dtype, options)
