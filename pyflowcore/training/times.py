"""Random training times, and label drop, as functions of (seeds, draw) alone.

Everything random in training is read from the counter-based streams of ``pyflowcore.randn``, so that a step's
randomness depends on the run's seed and the step's number: a resumed run draws what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pyflowcore as pfc
from pyflowcore.ops.randn import STREAMS

NOISE_STREAM, TIME_STREAM, DROP_STREAM, ORDER_STREAM = (
    STREAMS[use] for use in ("training", "training_time", "label_drop", "data_order")
)

TimeSampler = Callable[[Tensor, int], Tensor]
"""(seeds [B] int64, draw) -> times [B] float64 in (0, 1)."""


def _normals(seeds: Tensor, stream: int, draw: int) -> Tensor:
    """One standard normal a seed: [B] float64."""
    return pfc.randn(seeds, (1,), dtype=torch.float64, stream=stream, draw=draw)[:, 0]


def uniform(seeds: Tensor, draw: int) -> Tensor:
    """Times uniform on (0, 1): the normal distribution function of a normal. seeds [B] int64 -> [B] float64."""
    return torch.special.ndtr(_normals(seeds, TIME_STREAM, draw))


def logit_normal(seeds: Tensor, draw: int, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times whose logit is normal(mean, std), which spends more steps in the middle of a flow.

    seeds [B] int64 -> [B] float64 in (0, 1). Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 19.
    """
    return torch.sigmoid(mean + std * _normals(seeds, TIME_STREAM, draw))


_SAMPLERS: dict[str, TimeSampler] = {"logit_normal": logit_normal, "uniform": uniform}


def get(times: str | TimeSampler) -> TimeSampler:
    """The time sampler called ``times`` ("logit_normal" or "uniform"); a callable is returned as it is.

    Raises:
        ValueError: for an unknown name.
    """
    if callable(times):
        return times
    if times not in _SAMPLERS:
        raise ValueError(f"times must be one of {sorted(_SAMPLERS)} or a callable; got {times!r}")
    return _SAMPLERS[times]


def drop_labels(
    labels: Tensor, null_class: int, seeds: Tensor, draw: int, *, probability: float = 0.1
) -> Tensor:
    """Labels [B] int64, each replaced by ``null_class`` with the given probability.

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1. ValueError for a probability outside [0, 1].
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be within [0, 1]; got {probability}")
    dropped = torch.special.ndtr(_normals(seeds, DROP_STREAM, draw)) < probability
    return torch.where(dropped, null_class, labels)


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Which samples step number ``step`` sees: [batch_size] int64 on the CPU.

    Every epoch is a fresh random order of all ``count`` samples; what does not fill a batch at its end is left out.
    ValueError unless 1 <= batch_size <= count.
    """
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must be within [1, {count}], the number of samples; got {batch_size}")
    per_epoch = count // batch_size
    epoch, place = divmod(step, per_epoch)
    keys = pfc.randn([seed], (count,), stream=ORDER_STREAM, draw=epoch)[0]
    return torch.argsort(keys, stable=True)[place * batch_size : (place + 1) * batch_size]
