"""Where a trajectory begins: the state at the plan's first time, and the seeds of its noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .ops.randn import randn, seeds_tensor
from .plans import Plan

__all__ = ["count_of", "initial_state", "seeds_once"]


def initial_state(
    plan: Plan, x0: Tensor | None, shape: Sequence[int] | None, seeds: Tensor | None, batch: int | None,
    device: torch.device | str | None, dtype: torch.dtype | None, enable_grad: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The state at the plan's first time, and the seeds if the plan draws noise."""
    if dtype not in (None, torch.float32, torch.float64):
        raise TypeError(f"dtype, the state's, must be float32 or float64, got {dtype}")
    if (x0 is None) == (shape is None):
        raise ValueError(
            f"exactly one of x0 and shape must be given, got {'neither' if x0 is None else 'both'}"
        )
    if x0 is not None:
        if not isinstance(x0, Tensor):
            raise TypeError(f"x0 must be a tensor, got {type(x0).__name__}")
        if not x0.is_floating_point():
            raise TypeError(f"x0 must be floating point, got {x0.dtype}")
        if x0.dim() < 1:
            raise ValueError("x0 must have a batch dimension, got a scalar")
        if batch is not None and batch != x0.shape[0]:
            raise ValueError(f"batch is {batch}, x0 has {x0.shape[0]} samples")
        state = x0.to(
            device=device or x0.device,
            dtype=dtype or (torch.float64 if x0.dtype == torch.float64 else torch.float32),
        )
        state = state if enable_grad else state.detach()
        keys = _seeds_for(seeds, state.shape[0], state.device) if seeds is not None or plan.draws else None
        return state, keys
    wrong = isinstance(shape, str) or not isinstance(shape, Sequence)
    if wrong or any(isinstance(size, (float, str, bool)) for size in shape or ()):
        kind = type(shape).__name__
        raise TypeError(
            f"shape must be a sequence of integers, the shape of one sample, got {kind} {shape!r}"
        )
    if plan.times[0] > plan.times[-1]:
        raise ValueError(
            f"x0 is missing: the plan runs backwards from t = {plan.times[0]}, so x0 is data (or the state there) and must be "
            "given; shape would begin with noise"
        )
    if plan.times[0] != 0.0:
        raise ValueError(
            f"x0 is missing: the plan begins at t = {plan.times[0]}, where the state is not noise alone"
        )
    count = count_of(seeds, batch)
    if count is None:
        raise ValueError("seeds or batch must be given with shape: nothing else says how many samples")
    if batch is not None and batch != count:
        raise ValueError(f"batch is {batch}, seeds has {count} entries")
    keys = _seeds_for(seeds, count, device)
    noise = randn(keys, shape or (), dtype=dtype or torch.float32)
    scale = plan.along.noise_scale
    return noise if scale == 1.0 else noise * scale, keys


def _seeds_for(seeds: Tensor | None, batch: int, device: torch.device | str | None) -> Tensor:
    if seeds is None:
        drawn = torch.randint(-(2**63), 2**63 - 1, (batch,), dtype=torch.int64)
        return drawn if device is None else drawn.to(device)
    keys = seeds_tensor(seeds, device)
    if keys.shape[0] != batch:
        raise ValueError(f"seeds has {keys.shape[0]} entries, the batch has {batch} samples")
    return keys


def seeds_once(seeds: Iterable[int] | Tensor | None) -> Tensor | None:
    """Seeds as a tensor, made once: an iterator could not be gone through again."""
    return None if seeds is None else seeds_tensor(seeds)


def count_of(seeds: Tensor | None, batch: int | None) -> int | None:
    if seeds is None:
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 0):
            raise ValueError(f"batch must be an integer >= 0, got {batch!r}")
        return batch
    return len(seeds)
