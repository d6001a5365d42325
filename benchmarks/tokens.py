"""Fused operators of transformers and U-Nets, against what their layers are written as in eager PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.copying import copy_arms
from benchmarks.memory import sets_for
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled
from benchmarks.registry import Arm, Built, Case, benchmark
from pyflowcore import ops

_CPU_SIZES = (1 << 16, 1 << 20, 1 << 22)
_CUDA_SIZES = (1 << 16, 1 << 20, 1 << 22, 1 << 26)
_DTYPES = (torch.float32, torch.bfloat16)
Tensor = torch.Tensor


def _case(
    name: str, params: dict[str, object], footprint: int, operations: int, options: Options,
    make: Callable[[], tuple[Tensor, ...]], ours: Callable[..., object], eager: Callable[..., object], tolerance: float,
    into: Callable[..., object] | None = None,
) -> Case:  # fmt: skip
    """One pass that reads and writes as many bytes. ``into`` writes to the memory of an earlier result, as the copy does;
    on the other sides it is new, and on a CPU the system's work of mapping it is part of the time."""
    heat, sets = sets_for(footprint, options.device)

    def check() -> None:
        operands = make()
        mine, theirs = ours(*operands), eager(*operands)
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=4 * tolerance)

    def build() -> Built:
        operands = [make() for _ in range(sets)]
        arms = [
            Arm("fused", "candidate", [functools.partial(ours, *one) for one in operands]),
            Arm("eager", "baseline", [functools.partial(eager, *one) for one in operands]),
        ]
        if into is not None:
            calls = [functools.partial(into, ours(*one), *one) for one in operands]
            arms.insert(0, Arm("fused, into memory", "candidate", calls))
        skipped = {}
        fast = compiled(options, name, eager, *operands[0])
        if isinstance(fast, str):
            skipped["torch.compile"] = fast
        else:
            arms.append(Arm("torch.compile", "baseline", [functools.partial(fast, *one) for one in operands]))
        arms += copy_arms(footprint, options.device, options.threads, rotate=heat == "rotated")
        return Built(arms, skipped, check)

    half = footprint // 2
    return Case(
        name, params, half, footprint - half, operations, heat, build, target="at most 1.3 times the copy"
    )


def _qk_eager(
    heads: int, x: Tensor, bias: Tensor, weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, ...]:
    """RMS norms of queries and keys and rotary positions, as diffusion transformers write them; then contiguous."""
    parts = (x + bias).unflatten(-1, (3, heads, weight.shape[0])).permute(2, 0, 3, 1, 4)
    turned = []
    for part in parts[:2]:
        first, second = F.rms_norm(part, weight.shape, weight, 1e-6).unflatten(-1, (-1, 2)).unbind(-1)
        turned.append(
            torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2).to(x.dtype)
        )
    return *turned, parts[2].contiguous()


@benchmark(
    "qk_norm_rope",
    summary="bias, RMS norm and rotation of queries and keys, and the layout of attention, from one product.",
    least="every element of the product read once and written once; about 8 operations for an element of q or k",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def qk_cases(options: Options) -> Iterator[Case]:
    """16 heads of 64 and of 72 dimensions (DiT-XL's), float32 and bfloat16."""
    heads, tokens = 16, 256
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for head in (64, 72):
            for dtype in _DTYPES:
                width = 3 * heads * head
                length = min(tokens, max(1, n // width))
                batch = max(1, n // (width * length))

                def make(
                    batch: int = batch, length: int = length, width: int = width, head: int = head, dtype: torch.dtype = dtype
                ) -> tuple[Tensor, ...]:  # fmt: skip
                    def fresh(*shape: int) -> Tensor:
                        return torch.randn(*shape, device=options.device)

                    angle = fresh(length, head // 2)
                    return (
                        fresh(batch, length, width).to(dtype), fresh(width).to(dtype), fresh(head).to(dtype),
                        angle.cos().to(dtype), angle.sin().to(dtype),
                    )  # fmt: skip

                def ours(x: Tensor, bias: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> object:
                    return ops.qk_norm_rope(
                        x, heads, bias=bias, norm="rms", q_weight=weight, k_weight=weight, cos=cos, sin=sin
                    )

                def into(
                    out: tuple[Tensor, ...], x: Tensor, bias: Tensor, weight: Tensor, cos: Tensor, sin: Tensor
                ) -> None:
                    ops.qk_norm_rope_(
                        x, *out, bias=bias, norm="rms", q_weight=weight, k_weight=weight, cos=cos, sin=sin
                    )

                elements = batch * length * width
                short = str(dtype).removeprefix("torch.")
                yield _case(
                    f"{show_size(n)} elements, heads of {head}, {short}",
                    {"n": n, "head": head, "dtype": short},
                    2 * elements * dtype.itemsize, 6 * elements, options, make, ours,
                    functools.partial(_qk_eager, heads), 1e-5 if dtype == torch.float32 else 4e-2, into,
                )  # fmt: skip


def _norm_eager(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A residual block's norm with its modulation, as in ADM."""
    h = F.group_norm(x, 32, weight, bias)
    return F.silu(h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])


@benchmark(
    "group_norm_silu",
    summary="group norm of 32 groups, scale and shift of each sample, SiLU, on [B, 256, 32, 32].",
    least="x read once and written once, though its mean comes first; about 25 operations an element, SiLU 20 of them",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def norm_cases(options: Options) -> Iterator[Case]:
    """float32 and bfloat16."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for dtype in _DTYPES:
            batch = max(1, n >> 18)
            side = 32 if n >= 1 << 18 else 16

            def make(batch: int = batch, side: int = side, dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
                shapes = ((batch, 256, side, side), (256,), (256,), (batch, 256), (batch, 256))
                return tuple(torch.randn(*shape, device=options.device).to(dtype) for shape in shapes)

            def ours(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> object:
                return ops.group_norm_silu(x, 32, weight, bias, scale=scale, shift=shift)

            def into(
                out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
            ) -> None:
                ops.group_norm_silu_(x, out, 32, weight, bias, scale=scale, shift=shift)

            elements = batch * 256 * side * side
            short = str(dtype).removeprefix("torch.")
            yield _case(
                f"{show_size(n)} elements, {short}", {"n": n, "dtype": short}, 2 * elements * dtype.itemsize,
                25 * elements, options, make, ours, _norm_eager, 1e-4 if dtype == torch.float32 else 6e-2, into,
            )  # fmt: skip


def _patch_eager(x: Tensor) -> Tensor:
    """Two by two, channels first, as DiT's first layer reads them."""
    batch, channels, height, width = x.shape
    grid = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(batch, -1, 4 * channels)


@benchmark(
    "patchify",
    summary="latents of four channels, [B, 4, 32, 32], as tokens of two by two.",
    least="every element read once and written once",
    baselines=("eager", "torch.compile", "copy", "streaming copy"),
)
def patch_cases(options: Options) -> Iterator[Case]:
    """float32 and bfloat16."""
    for n in options.choose_sizes(_CPU_SIZES, _CUDA_SIZES):
        for dtype in _DTYPES:

            def make(batch: int = max(1, n >> 12), dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
                return (torch.randn(batch, 4, 32, 32, device=options.device).to(dtype),)

            elements = max(1, n >> 12) << 12
            short = str(dtype).removeprefix("torch.")
            yield _case(
                f"{show_size(n)} elements, {short}", {"n": n, "dtype": short}, 2 * elements * dtype.itemsize, 0,
                options, make, lambda x: ops.patchify(x, 2), _patch_eager, 0.0,
                lambda out, x: torch.ops.pyflowcore.patchify_(x, out, 2, 2, True),
            )  # fmt: skip
