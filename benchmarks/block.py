"""What stands between the matrix products of a transformer block, each in one pass, against the same lines in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled
from benchmarks.registry import Arm, Built, Case, benchmark
from pyflowcore.ops import block

_CPU_SIZES = (1 << 14, 1 << 20, 1 << 22)
_CUDA_SIZES = (1 << 14, 1 << 20, 1 << 22, 1 << 26)
_BATCH, _WIDTH, _EPS = 4, 1024, 1e-6
Tensor = torch.Tensor


@dataclass
class _Operands:
    """x, y [B, N, C]; halves [B, N, 2 C]; shift, scale, gate: chunks of one projection [B, 3 C]; vector [C]."""

    x: Tensor
    y: Tensor
    halves: Tensor
    shift: Tensor
    scale: Tensor
    gate: Tensor
    vector: Tensor


def _operands(n: int, dtype: torch.dtype, device: str) -> _Operands:
    tokens = max(1, n // (_BATCH * _WIDTH))

    def fresh(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    rows = fresh(_BATCH, 3 * _WIDTH).chunk(3, 1)
    shape = (_BATCH, tokens, _WIDTH)
    return _Operands(fresh(*shape), fresh(*shape), fresh(*shape[:2], 2 * _WIDTH), *rows, fresh(_WIDTH))


def _norm(x: Tensor, o: _Operands) -> Tensor:
    return F.layer_norm(x, (_WIDTH,), eps=_EPS) * (1 + o.scale[:, None]) + o.shift[:, None]


def _joined(o: _Operands) -> tuple[Tensor, Tensor]:
    x = o.x + o.gate[:, None] * o.y
    return x, _norm(x, o)


def _swiglu(o: _Operands) -> Tensor:
    first, second = o.halves.chunk(2, -1)
    return F.silu(first) * second


@dataclass(frozen=True)
class _Kind:
    """An operator, the lines it replaces, and how many tensors of x's size it reads and writes at least."""

    ours: Callable[[_Operands], object]
    eager: Callable[[_Operands], object]
    read: int
    written: int
    operations: int


_KINDS = {
    "norm_modulate": _Kind(lambda o: block.norm_modulate(o.x, o.shift, o.scale), lambda o: _norm(o.x, o), 1, 1, 11),
    "rms norm_modulate": _Kind(
        lambda o: block.norm_modulate(o.x, None, o.scale, weight=o.vector, kind="rms"),
        lambda o: F.rms_norm(o.x, (_WIDTH,), o.vector, _EPS) * (1 + o.scale[:, None]),
        1, 1, 6,
    ),
    "gate_residual": _Kind(
        lambda o: block.gate_residual(o.x, o.y, o.gate), lambda o: torch.addcmul(o.x, o.gate[:, None], o.y), 2, 1, 2
    ),
    "gate_residual_norm": _Kind(
        lambda o: block.gate_residual_norm(o.x, o.y, o.gate, o.shift, o.scale), _joined, 2, 2, 13
    ),
    "swiglu": _Kind(lambda o: block.swiglu(o.halves), _swiglu, 2, 1, 40),
    "gelu": _Kind(lambda o: block.gelu(o.x), lambda o: F.gelu(o.x), 1, 1, 50),
    "gelu tanh, bias": _Kind(
        lambda o: block.gelu(o.x, o.vector, "tanh"), lambda o: F.gelu(o.x + o.vector, approximate="tanh"), 1, 1, 50
    ),
}  # fmt: skip


def _check(kind: _Kind, dtype: torch.dtype, device: str) -> None:
    """Against the eager lines on fresh numbers."""
    operands = _operands(4 * _BATCH * _WIDTH, dtype, device)
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(kind.ours(operands), kind.eager(operands), rtol=tolerance, atol=tolerance)


def _case(name: str, n: int, dtype: torch.dtype, options: Options) -> Case:
    kind = _KINDS[name]
    one = _operands(n, dtype, "meta").x
    size = one.numel() * one.element_size()
    read, written = kind.read * size, kind.written * size
    heat, sets = sets_for(read + written, options.device)
    label = f"{name}, {show_size(one.numel())} elements, {str(dtype).removeprefix('torch.')}"

    def build() -> Built:
        operands = [_operands(n, dtype, options.device) for _ in range(sets)]
        arms = [
            Arm(name, "candidate", [functools.partial(kind.ours, one) for one in operands]),
            Arm("eager", "baseline", [functools.partial(kind.eager, one) for one in operands]),
        ]
        skipped = {}
        fast = compiled(options, label, kind.eager, operands[0])
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            arms.append(Arm("torch.compile", "baseline", [functools.partial(fast, one) for one in operands]))
        arms += copy_arms(read + written, options.device, options.threads, rotate=heat == "rotated")
        return Built(arms, skipped, functools.partial(_check, kind, dtype, options.device))

    params = {"kind": name, "n": one.numel(), "dtype": str(dtype).removeprefix("torch.")}
    target = "at most 1.3 times the copy" if n == 1 << 22 and dtype == torch.float32 else ""
    return Case(label, params, read, written, kind.operations * one.numel(), heat, build, target=target)


@benchmark(
    "block",
    summary="Modulated norms, gated residuals, GELU and SwiGLU of [4, N, 1024]; new memory for results on all sides.",
    least="each tensor of x's size read or written once; shift, scale and gate are small; 2 to 50 operations for an element",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """Every operator in float32, and in bfloat16."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for dtype in (torch.float32, torch.bfloat16):
            for name in _KINDS:
                yield _case(name, n, dtype, options)
