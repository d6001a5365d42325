"""randn: counter-based standard normals, one seed per sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import _library

_library.define("randn(Tensor seeds, SymInt[] shape, int stream, int draw, ScalarType dtype) -> Tensor")

STREAMS = {
    "initial": 0,
    "plan": 1,
    "probe": 2,
    "training": 3,
    "training_time": 4,
    "label_drop": 5,
    "data_order": 6,
}

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def seeds_tensor(seeds: Iterable[int] | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Seeds as an int64 tensor [B]. Integers from -2^63 to 2^64 - 1 are allowed; only their 64 bits count."""
    if isinstance(seeds, Tensor):
        if seeds.dtype != torch.int64:
            raise TypeError(f"seeds must be int64, got {seeds.dtype}")
        if seeds.dim() != 1:
            raise ValueError(f"seeds must have shape [B], got {list(seeds.shape)}")
        return seeds if device is None else seeds.to(device)
    if isinstance(seeds, (int, np.integer)):
        raise TypeError(
            f"seeds must be a sequence with one integer per sample, got the single number {seeds}"
        )
    try:
        values = [int(seed.__index__()) for seed in seeds]
    except (AttributeError, TypeError):
        raise TypeError(f"seeds must be integers, one per sample, got {seeds!r}") from None
    for i, value in enumerate(values):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"seeds[{i}] is {value}, allowed are -2^63 to 2^64 - 1")
    return torch.tensor([v - 2**64 if v >= 2**63 else v for v in values], dtype=torch.int64, device=device)


def randn(
    seeds: Iterable[int] | Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    stream: int = 0,
    draw: int = 0,
) -> Tensor:
    """Standard normals [B, *shape] by Philox4x32-10 (Salmon et al. 2011) and Box-Muller.

    Sample i depends on ``seeds[i]``, ``stream`` and ``draw`` alone: not on the batch, the position in it, the device, the
    number of threads, nor on dtype (other dtypes hold the float32 normals, cast). The largest magnitude is 5.89.

    Args:
        seeds: one integer per sample, or an int64 tensor [B].
        shape: of one sample.
        dtype: float32, float64, bfloat16 or float16.
        device: default that of ``seeds`` if it is a tensor, else the CPU.
        stream: what the noise is for; see ``STREAMS``. 0 is a trajectory's start.
        draw: which draw of the stream.

    Raises:
        TypeError, ValueError: seeds that are not integers or not one-dimensional; another dtype; negative sizes.
    """
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    sizes = [int(size) for size in shape]
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must not have negative sizes, got {tuple(sizes)}")
    for name, value in (("stream", stream), ("draw", draw)):
        if not 0 <= value < 2**32:
            raise ValueError(f"{name} must be in [0, 2^32), got {value}")
    return torch.ops.pyflowcore.randn(seeds_tensor(seeds, device), sizes, stream, draw, dtype)


@torch.library.register_fake("pyflowcore::randn", lib=_library.definitions)
def _fake(seeds: Tensor, shape: Sequence[int], stream: int, draw: int, dtype: torch.dtype) -> Tensor:
    return seeds.new_empty([seeds.shape[0], *shape], dtype=dtype)
