"""Densities at the noise end: the standard normal, or any torch distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["log_density"]


def log_density(source: Distribution | None, x: Tensor, scale: float) -> Tensor:
    """log p [B] float64 at x [B, ...]: of N(0, scale^2) for each element, or of ``source``.

    Raises:
        TypeError, ValueError: a source that is no distribution over the whole sample.
    """
    if source is None:
        flat = x.double().reshape(x.shape[0], x[:1].numel() if len(x) else 0) / scale
        return -0.5 * flat.square().sum(1) - flat.shape[1] * (0.5 * math.log(2.0 * math.pi) + math.log(scale))
    if not isinstance(source, Distribution):
        raise TypeError(
            f"source must be a torch.distributions.Distribution or None, got {type(source).__name__}"
        )
    try:
        value = source.log_prob(x)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"source: log_prob failed on samples {list(x.shape)} of {x.dtype}; the distribution has batch shape "
            f"{list(source.batch_shape)} and event shape {list(source.event_shape)}: {error}"
        ) from error
    if value.shape != x.shape[:1]:
        extra = max(value.dim() - 1, 1)
        raise ValueError(
            f"source: log_prob of samples {list(x.shape)} must have shape {list(x.shape[:1])}, one number a sample, got "
            f"{list(value.shape)}; torch.distributions.Independent(source, {extra}) sums over the elements of a sample"
        )
    return value.to(torch.float64)


def draw(source: Distribution, batch: int, enable_grad: bool) -> Tensor:
    """Samples [batch, ...], from torch's generator; with the gradient in the source's parameters where it has one."""
    if not isinstance(source, Distribution):
        raise TypeError(
            f"source must be a torch.distributions.Distribution or None, got {type(source).__name__}"
        )
    if source.batch_shape:
        raise ValueError(
            f"source must be one distribution over a whole sample; its batch shape is {list(source.batch_shape)}: "
            f"torch.distributions.Independent(source, {len(source.batch_shape)}) makes one"
        )
    size = torch.Size((batch,))
    return source.rsample(size) if enable_grad and source.has_rsample else source.sample(size)
