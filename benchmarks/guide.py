"""A guided Euler step whose weights depend on the sample, against the same lines in eager PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import pyflowcore as pfc
from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled
from benchmarks.registry import Arm, Built, Case, benchmark
from pyflowcore.ops._plain_guide import scratch_size

_CPU_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_CUDA_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
_BATCH, _SCALE, _NORM, _STEPS, _ROW = 4, 4.0, 15.0, 10, 3
_TIME = _ROW / _STEPS
Tensor = torch.Tensor


def _next(x: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    x = x + velocity / _STEPS
    return x, torch.cat([x, x])


def _star(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """CFG-Zero*, as its authors' users write it."""
    c, u = out.chunk(2)
    s = (c * u).sum(1, keepdim=True) / (u**2).sum(1, keepdim=True)
    return _next(x, u * s + _SCALE * (c - u * s))


def _apg(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Adaptive projected guidance of a velocity, in data space."""
    c, u = (x + (1 - _TIME) * v for v in out.chunk(2))
    d = c - u
    d = d * torch.clamp(_NORM / d.norm(dim=1, keepdim=True), max=1.0)
    direction = c / c.norm(dim=1, keepdim=True)
    d = d - (d * direction).sum(1, keepdim=True) * direction
    return _next(x, (c + (_SCALE - 1) * d - x) / (1 - _TIME))


@dataclass(frozen=True)
class Kind:
    """A guidance: its rule, its eager lines, how often x is read, and its operations for an element."""

    name: str
    rule: tuple[float, ...]
    eager: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    state_reads: int
    operations: int


# zero, eta, norm, beta, phi, p, q; the products: three of two vectors, six of three, two operations each.
KINDS = (
    Kind("CFG-Zero*", (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0), _star, 1, 13),
    Kind("APG", (0.0, 0.0, _NORM, 0.0, 0.0, 1.0, 1 - _TIME), _apg, 2, 21),
)


@dataclass
class _Operands:
    """One buffer set, laid out as a Sampler does: the state is the first half of the next input."""

    stack: Tensor
    out: Tensor
    mix: Tensor
    scratch: Tensor


def _operands(kind: Kind, n: int, device: str) -> _Operands:
    batch = _BATCH if n % _BATCH == 0 else 1
    point = kind.rule[1] != 1.0
    return _Operands(
        stack=torch.randn(2 * batch, n // batch, device=device),
        out=torch.randn(2 * batch, n // batch, device=device),
        mix=torch.zeros(3 + point, batch, device=device),
        scratch=torch.zeros(scratch_size(batch, n // batch, 2, point), dtype=torch.float64, device=device),
    )


def _fused(kind: Kind, one: _Operands) -> Callable[[], None]:
    batch = one.stack.shape[0] // 2
    x, inp = one.stack[:batch], one.stack[batch:]
    table = pfc.plan("euler", _STEPS).table
    rules = torch.tensor([kind.rule] * _STEPS, dtype=torch.float64)
    guidance = torch.full((_STEPS, 1), _SCALE, device=x.device)
    guide_, combine_ = torch.ops.pyflowcore.guide_.default, torch.ops.pyflowcore.combine_mixed_.default

    def step() -> None:
        guide_(x, None, None, one.mix, one.scratch, one.out, None, guidance, rules, _ROW)
        combine_(x, None, None, inp, None, one.out, None, one.mix, None, None, table, _ROW)

    return step


def _check(kind: Kind, n: int, device: str) -> None:
    """The fused step against the eager one on fresh numbers."""
    one = _operands(kind, n, device)
    batch = one.stack.shape[0] // 2
    expected, _ = kind.eager(one.stack[:batch].clone(), one.out)
    _fused(kind, one)()
    torch.testing.assert_close(one.stack[:batch], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.stack[batch:], one.stack[:batch], rtol=0, atol=0)


def _case(kind: Kind, n: int, options: Options) -> Case:
    # Both branches twice: the weights of a sample are known only when all of it has been read.
    read, written = n * 4 * (4 + kind.state_reads), n * 8
    footprint = n * 4 * 4
    heat, sets = sets_for(footprint, options.device)
    name = f"{kind.name}, {show_size(n)} elements"

    def build() -> Built:
        operands = [_operands(kind, n, options.device) for _ in range(sets)]
        first = operands[0]
        batch = first.stack.shape[0] // 2
        arms = [
            Arm("guide_ and combine_mixed_", "candidate", [_fused(kind, one) for one in operands]),
            Arm(
                "eager", "baseline", [functools.partial(kind.eager, one.stack[:batch], one.out) for one in operands]
            ),
        ]  # fmt: skip
        skipped = {}
        fast = compiled(options, name, kind.eager, first.stack[:batch], first.out)
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            calls = [functools.partial(fast, one.stack[:batch], one.out) for one in operands]
            arms.append(Arm("torch.compile", "baseline", calls))
        arms += copy_arms(read + written, options.device, options.threads, rotate=heat == "rotated")
        return Built(arms, skipped, functools.partial(_check, kind, min(n, 1 << 16), options.device))

    return Case(name, {"kind": kind.name, "n": n}, read, written, kind.operations * n, heat, build)


@benchmark(
    "guide",
    summary="A guided Euler step with weights per sample, CFG-Zero* and APG, on a doubled float32 input.",
    least="both branches read twice, since weights need the whole sample; x read once (APG: twice), x and the other half of "
    "the next input written; 13 operations an element (APG: 21)",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """Both guidances at every size."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for kind in KINDS:
            yield _case(kind, n, options)
