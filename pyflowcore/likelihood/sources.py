"""Densities at the noise end: the standard normal, or any torch distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .arrivals import whole

__all__ = ["log_density"]


def log_density(source: Distribution | None, x: Tensor, scale: float) -> Tensor:
    """log p [B] float64 at x [B, ...]: of N(0, scale^2) for each element, or of ``source``.

    nan for a sample that is not finite, -inf for one outside the source's support; neither reaches the source, which may raise
    for the whole batch.

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
    finite = whole(x.detach().isfinite())
    try:
        inside = _inside(source, x.detach())
        within = finite if inside is None else finite & inside
        value = source.log_prob(x if bool(within.all()) else _moved_in(source, x, within))
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
    value = torch.where(within, value.to(torch.float64), -torch.inf)
    return torch.where(finite, value, torch.nan)


def _inside(source: Distribution, x: Tensor) -> Tensor | None:
    """[B] bool: the samples in the source's support; None where the source does not say."""
    try:
        support = source.support
    except NotImplementedError:
        return None
    if support is None or constraints.is_dependent(support):
        return None
    found = support.check(x)
    return whole(found) if found.shape[:1] == x.shape[:1] else None


def _moved_in(source: Distribution, x: Tensor, within: Tensor) -> Tensor:
    """x, with a sample of the source where x has none of its support. torch's generator stays where it was."""
    if not source.batch_shape and bool(within.any()):
        other = x.detach()[within.nonzero()[0, 0]]
    else:
        with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
            other = source.sample().to(x)
    return torch.where(within.reshape(-1, *[1] * (x.dim() - 1)), x, other)


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
