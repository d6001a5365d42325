"""Where a trajectory begins: the state at the plan's first time, the seeds of its noise, and the noise in the state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .given_noise import GivenNoise
from .ops.randn import randn, seeds_tensor
from .plans import Plan

__all__ = ["Begin", "Start", "check_shape", "count_of", "seeds_once", "start_of"]


@dataclass(slots=True)
class Begin:
    """What a caller says about the start; ``Sampler.__call__`` documents each."""

    x0: Tensor | None = None
    shape: Sequence[int] | None = None
    init: Tensor | None = None
    seeds: Tensor | None = None
    batch: int | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    noise: GivenNoise | None = None

    def given(self) -> Tensor | None:
        """The tensor that says batch and device, if one does."""
        return self.x0 if self.x0 is not None else self.init


@dataclass(slots=True)
class Start:
    """The state at the plan's first time; the seeds, if anything draws from them; the standard normal noise that the state is
    made of, if it was asked for."""

    state: Tensor
    seeds: Tensor | None
    noise: Tensor | None = None


def start_of(
    plan: Plan, begin: Begin, *, enable_grad: bool, draws: bool = False, keep_noise: bool = False
) -> Start:
    """The start of a trajectory.

    Args:
        draws: something beside the plan draws from the seeds.
        keep_noise: the noise of the start is wanted by itself.
    """
    if begin.dtype not in (None, torch.float32, torch.float64):
        raise TypeError(f"dtype, the state's, must be float32 or float64, got {begin.dtype}")
    if (begin.x0 is not None) + (begin.shape is not None) + (begin.init is not None) != 1:
        given = [name for name in ("x0", "shape", "init") if getattr(begin, name) is not None]
        raise ValueError(
            f"exactly one of x0, shape and init must be given, got {'both ' + ' and '.join(given) if given else 'neither'}"
        )
    if begin.noise is not None and begin.noise.generators and begin.seeds is not None:
        raise ValueError("seeds and a generator are both given: the noise comes from one of them")
    draws = draws or (plan.draws > 0 and begin.noise is None)
    if begin.shape is not None:
        return _from_noise(plan, begin, begin.shape, keep_noise)
    tensor = _state_from(begin, enable_grad)
    keys = None
    if begin.seeds is not None or draws:
        keys = _seeds_for(begin.seeds, tensor.shape[0], tensor.device)
    if begin.x0 is None:
        return _from_data(plan, begin, tensor, keys)
    if not keep_noise:
        return Start(tensor, keys)
    if plan.times[0] == 0.0:
        # A copy: the caller may write into x0 while the trajectory runs.
        scale = _noise_scale(plan)
        return Start(tensor, keys, tensor.clone() if scale == 1.0 else tensor / scale)
    noise, keys = _noise(begin, tensor.shape, tensor.dtype, tensor.device, keys)
    return Start(tensor, keys, noise)


def _state_from(begin: Begin, enable_grad: bool) -> Tensor:
    """x0 or init, in the state's dtype, on its device."""
    name = "x0" if begin.x0 is not None else "init"
    tensor = begin.given()
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.dim() < 1:
        raise ValueError(f"{name} must have a batch dimension, got a scalar")
    if begin.batch is not None and begin.batch != tensor.shape[0]:
        raise ValueError(f"batch is {begin.batch}, {name} has {tensor.shape[0]} samples")
    dtype = begin.dtype or (torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    # Asked before the calls: each costs a small trajectory a hundredth of its time, and x0 is mostly as it should be.
    if tensor.dtype != dtype or begin.device is not None:
        tensor = tensor.to(device=begin.device or tensor.device, dtype=dtype)
    return tensor.detach() if tensor.requires_grad and not enable_grad else tensor


def _from_noise(plan: Plan, begin: Begin, shape: Sequence[int], keep_noise: bool) -> Start:
    check_shape(shape)
    if plan.times[0] > plan.times[-1]:
        raise ValueError(
            f"x0 is missing: the plan runs backwards from t = {plan.times[0]}, so x0 is data (or the state there) and must be "
            "given; shape would begin with noise"
        )
    if plan.times[0] != 0.0:
        raise ValueError(
            f"x0 is missing: the plan begins at t = {plan.times[0]}, where the state is not noise alone; init= begins there "
            "from data"
        )
    count = count_of(begin.seeds, begin.batch)
    if count is None:
        raise ValueError("seeds or batch must be given with shape: nothing else says how many samples")
    if begin.batch is not None and begin.batch != count:
        raise ValueError(f"batch is {begin.batch}, seeds has {count} entries")
    dtype = begin.dtype or torch.float32
    noise, keys = _noise(begin, (count, *shape), dtype, begin.device, None)
    if keys is None and begin.seeds is not None:
        keys = _seeds_for(begin.seeds, count, begin.device)
    scale = _noise_scale(plan)
    return Start(noise if scale == 1.0 else noise * scale, keys, noise if keep_noise else None)


def check_shape(shape: object) -> None:
    """Refuses what is no shape of one sample."""
    wrong = isinstance(shape, str) or not isinstance(shape, Sequence)
    if wrong or any(isinstance(size, (float, str, bool)) for size in shape):  # type: ignore[attr-defined]
        kind = type(shape).__name__
        raise TypeError(
            f"shape must be a sequence of integers, the shape of one sample, got {kind} {shape!r}"
        )


def _from_data(plan: Plan, begin: Begin, data: Tensor, keys: Tensor | None) -> Start:
    """alpha x1 + sigma noise at the plan's first time. Three operations, each rounded: the same bits in any batch."""
    alpha, sigma = _first_level(plan)
    noise, keys = _noise(begin, data.shape, data.dtype, data.device, keys)
    return Start(data * alpha + noise * sigma, keys, noise)


@torch.compiler.assume_constant_result
def _first_level(plan: Plan) -> tuple[float, float]:
    """alpha and sigma at the plan's first time."""
    alpha, sigma, _, _ = plan.along.coefficients([plan.times[0]])
    return float(alpha[0]), float(sigma[0])


@torch.compiler.assume_constant_result
def _noise_scale(plan: Plan) -> float:
    return float(plan.along.noise_scale)


def _noise(
    begin: Begin, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None, keys: Tensor | None
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The start's noise [B, ...]: given, or drawn from seeds, which are returned too."""
    if begin.noise is not None and begin.noise.starts:
        return begin.noise.start(shape, dtype, device), keys
    if keys is None:
        keys = _seeds_for(begin.seeds, shape[0], device)
    return randn(keys, shape[1:], dtype=dtype), keys


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
