"""What is said about a set of times: median, p20, p80, and the noise measured by repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile of ``values`` by linear interpolation, 0 <= q <= 1. Raises ValueError where there are none."""
    if not values:
        raise ValueError("values must hold at least one time, got none")
    if not 0 <= q <= 1:
        raise ValueError(f"q must lie in [0, 1], got {q}")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Summary:
    """Times in seconds. 99 % and 99.9 % of them are below ``p99`` and ``p999``. ``noise`` is the largest ratio between the
    medians of any two repeats of one measurement."""

    median: float
    p20: float
    p80: float
    samples: int
    repeat_medians: tuple[float, ...]
    p99: float
    p999: float

    @property
    def noise(self) -> float:
        return max(self.repeat_medians) / min(self.repeat_medians)


def summarise(repeats: Sequence[Sequence[float]]) -> Summary:
    """The summary of all samples, and the median of each repeat.

    Raises ValueError for empty input, or a time that is not positive and finite.
    """
    pooled = [seconds for repeat in repeats for seconds in repeat]
    if any(not math.isfinite(seconds) or seconds <= 0 for seconds in pooled):
        raise ValueError("times must be positive and finite")
    return Summary(
        median=quantile(pooled, 0.5),
        p20=quantile(pooled, 0.2),
        p80=quantile(pooled, 0.8),
        samples=len(pooled),
        repeat_medians=tuple(quantile(repeat, 0.5) for repeat in repeats),
        p99=quantile(pooled, 0.99),
        p999=quantile(pooled, 0.999),
    )
