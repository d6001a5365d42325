"""Where the log-density begins: the caller's states, or those that the source draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..field import Field
from ..initial import check_shape
from ..ops.randn import randn
from .sources import draw

__all__ = ["start_of", "state_of"]


def state_of(x: Tensor, name: str, enable_grad: bool) -> Tensor:
    """A caller's states in the state's dtype: float64 stays, the rest is float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError(f"{name} must have a batch dimension, got a scalar")
    state = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    state = state if enable_grad else state.detach()
    return state.clone() if state.is_inference() else state


def start_of(
    field: Field, scale: float, source: Distribution | None, shape: Sequence[int] | None, keys: Tensor | None,
    batch: int | None, x0: Tensor | None, dtype: torch.dtype | None, device: torch.device | str | None, enable_grad: bool,
) -> Tensor:  # fmt: skip
    if dtype not in (None, torch.float32, torch.float64):
        raise TypeError(f"dtype, the state's, must be float32 or float64, got {dtype}")
    if x0 is not None:
        if shape is not None or batch is not None:
            raise ValueError("x0 is given: it says shape and batch, which must not be given beside it")
        return state_of(x0, "x0", enable_grad).to(device=device, dtype=dtype)
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 0):
        raise ValueError(f"batch must be an integer >= 0, got {batch!r}")
    count = batch if batch is not None else None if keys is None else len(keys)
    if count is None:
        raise ValueError("seeds, batch or x0 must be given: nothing else says how many samples")
    if keys is not None and len(keys) != count:
        raise ValueError(f"batch is {count}, seeds has {len(keys)} entries")
    if source is not None:
        if shape is not None:
            raise ValueError("shape must not be given beside source, whose samples have one")
        drawn = draw(source, count, enable_grad)
        return state_of(drawn, "source's samples", enable_grad).to(device=device, dtype=dtype)
    if shape is None:
        raise ValueError("shape, of one sample, must be given, or x0 or source")
    check_shape(shape)
    if keys is None:
        keys = torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64)
    if device is None and not keys.is_cuda:
        device = field.device()
    noise = randn(keys.to(device or keys.device), shape, dtype=dtype or torch.float32)
    return noise if scale == 1.0 else noise * scale
