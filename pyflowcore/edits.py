"""What happens to the state at grid points: a caller's hook, and inpainting. Both come between the halves of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _core
from .buffers import FunctionalBuffers, InPlaceBuffers
from .given_noise import GivenNoise
from .plans import Plan
from .scales import seen

__all__ = ["FRESH", "Hook", "Inpaint", "check_known", "hook_edit", "inpaint_edit"]

Hook = Callable[[int, float, Tensor], "Tensor | None"]
Edit = Callable[[int], None]
Buffers = InPlaceBuffers | FunctionalBuffers

# Fresh noise of the known region at step n is draw FRESH + n of the plan's stream; a plan's own draws stay below 2^30.
FRESH = 2**31

_R = _core.record


def hook_edit(hook: Hook, buffers: Buffers, times: Sequence[float]) -> Edit:
    """Calls ``hook(step, t, x)`` and takes what it returns, if anything, as the state."""
    recorded = isinstance(buffers, FunctionalBuffers)

    def edit(step: int) -> None:
        x = buffers.x
        # The memory of an in-place trajectory must not join the graph of a caller's loop.
        with torch.set_grad_enabled(recorded and torch.is_grad_enabled()):
            new = hook(step, times[step + 1], x)
            if new is None or new is x:
                return
            if not isinstance(new, Tensor):
                raise TypeError(f"hook must return a tensor or None, got {type(new).__name__}")
            if new.shape != x.shape or new.device != x.device or not new.is_floating_point():
                raise ValueError(
                    f"hook returned {new.dtype} {list(new.shape)} on {new.device}, the state is {x.dtype} {list(x.shape)} on "
                    f"{x.device}"
                )
            buffers.set_x(new.to(x.dtype))

    return edit


@dataclass
class Inpaint:
    """The region that is known.

    Attributes:
        mask: 1 or True where ``known`` holds; bool, or of the state's dtype in [0, 1]; broadcasts to the state.
        known: the data there, of the state's shape and dtype, contiguous.
        fresh: noise of its own for every step, in place of the start's.
        noise: the start's noise, where it is kept.
    """

    mask: Tensor
    known: Tensor
    fresh: bool
    noise: Tensor | None = None

    @staticmethod
    def of(mask: Tensor | None, known: Tensor | None, known_noise: str, state: Tensor) -> Inpaint | None:
        """From the call's arguments; None without a mask."""
        check_known(mask, known, known_noise)
        if mask is None or known is None:
            return None
        for name, tensor in (("mask", mask), ("known", known)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
            if tensor.dim() != state.dim() or any(
                size not in (1, whole) for size, whole in zip(tensor.shape, state.shape, strict=True)
            ):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}, which does not broadcast to the state's {list(state.shape)}: each "
                    "size must be 1 or the state's"
                )
        if not known.is_floating_point():
            raise TypeError(f"known must be floating point, got {known.dtype}")
        if mask.dtype != torch.bool:
            if not mask.is_floating_point():
                raise TypeError(f"mask must be bool or floating point, got {mask.dtype}")
            if seen(mask) and not bool(((mask >= 0) & (mask <= 1)).all()):
                raise ValueError("mask must lie in [0, 1]")
            mask = mask.to(dtype=state.dtype)
        whole = known.to(device=state.device, dtype=state.dtype).expand(state.shape)
        return Inpaint(mask.to(state.device), whole.contiguous(), known_noise == "fresh")


def check_known(mask: Tensor | None, known: Tensor | None, known_noise: str) -> None:
    """What can be refused before there is a state."""
    if known_noise not in ("start", "fresh"):
        raise ValueError(f"known_noise must be 'start' or 'fresh', got {known_noise!r}")
    if (mask is None) != (known is None):
        raise ValueError(f"{'mask' if mask is None else 'known'} is missing: mask and known come together")


@torch.compiler.assume_constant_result
def level_table(plan: Plan, from_seeds: bool) -> Tensor:
    """Row n makes, beside x = known, the point alpha known + sigma noise at times[n + 1]; the noise is slot 0, or drawn."""
    alpha, sigma, _, _ = plan.along.coefficients(plan.times[1:])
    table = torch.zeros(plan.steps, _R["width"], dtype=torch.float64)
    table[:, _R["store"]] = -1.0
    table[:, _R["in_scale"]] = table[:, _R["a"]] = 1.0
    table[:, _R["c"]] = torch.from_numpy(alpha)
    table[:, _R["c_minus_1"]] = table[:, _R["c"]] - 1.0
    table[:, _R["draw"] : _R["draw"] + _R["max_draws"]] = -1.0
    if from_seeds:
        table[:, _R["draw"]] = torch.arange(FRESH, FRESH + plan.steps, dtype=torch.float64)
    table[:, _R["r"] if from_seeds else _R["e"]] = torch.from_numpy(sigma)
    return table


def inpaint_edit(
    inpaint: Inpaint, buffers: Buffers, plan: Plan, seeds: Tensor | None, noise: GivenNoise | None
) -> Edit:
    """x <- M (alpha known + sigma xi) + (1 - M) x at each grid point.

    Beside ``known`` it takes, once a trajectory, one tensor of the state's size for the known region at its level and one for
    its noise, unless that is drawn from seeds.
    """
    generated = inpaint.fresh and noise is not None
    if generated and noise is not None and not noise.generators:
        raise ValueError(
            "known_noise='fresh' draws from seeds or generators, but noise gives tensors: use known_noise='start'"
        )
    table = level_table(plan, inpaint.fresh and noise is None)
    kept = torch.empty_like(inpaint.known) if generated else None if inpaint.fresh else inpaint.noise
    seeds = seeds if inpaint.fresh and noise is None else None
    mask, known = inpaint.mask, inpaint.known
    rest = None if mask.dtype == torch.bool else 1.0 - mask
    drawing = noise if generated else None
    if isinstance(buffers, FunctionalBuffers):
        return _functional(buffers, table, known, kept, seeds, mask, rest, drawing)
    return _in_place(buffers, table, known, kept, seeds, mask, rest, drawing)


def _in_place(
    buffers: InPlaceBuffers, table: Tensor, known: Tensor, kept: Tensor | None, seeds: Tensor | None, mask: Tensor,
    rest: Tensor | None, drawing: GivenNoise | None,
) -> Edit:  # fmt: skip
    known = known.detach()
    level = torch.empty_like(known)
    slots = None if kept is None else kept.detach().contiguous()[None]
    combine_ = torch.ops.pyflowcore.combine_.default

    def edit(step: int) -> None:
        x = buffers.x
        with torch.no_grad():
            if drawing is not None and slots is not None:
                drawing.fill(step, slots[0])
            # Writes nothing but `level`: the row leaves its state, `known`, as it is.
            combine_(known, None, level, None, slots, None, None, None, seeds, table, step)
            if rest is None:
                torch.where(mask, level, x, out=x)
            else:
                # Products and a sum, each rounded: the same bits in any batch, and exactly `level` where the mask is 1.
                x.mul_(rest).add_(level.mul_(mask))

    return edit


def _functional(
    buffers: FunctionalBuffers, table: Tensor, known: Tensor, kept: Tensor | None, seeds: Tensor | None, mask: Tensor,
    rest: Tensor | None, drawing: GivenNoise | None,
) -> Edit:  # fmt: skip
    def edit(step: int) -> None:
        noise = kept
        if drawing is not None:
            noise = torch.empty_like(known)
            drawing.fill(step, noise)
        slots = [] if noise is None else [noise]
        _, level, _ = torch.ops.pyflowcore.combine(known, None, slots, [], None, seeds, table, step)
        x = buffers.x
        buffers.set_x(torch.where(mask, level, x) if rest is None else x * rest + level * mask)

    return edit
