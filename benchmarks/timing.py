"""Clocks, and the round robin in which all arms of a case take turns.

Arms that are timed one after the other are compared across whatever the machine did in between. Here every round times
every arm once, in a shuffled order, and a case's figures are medians over the rounds.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from benchmarks.registry import Arm

MIN_ROUNDS = 9
MAX_ROUNDS = 300
# Whole trajectories of a wide network take seconds: an arm that takes this long is warmed by one call and not again, and
# a round this long is made so often at least.
LONG_SECONDS = 0.05
LONG_ROUND_SECONDS = 1.0
LONG_MIN_ROUNDS = 3
# Where every call counts, a ceiling, which is slow and has no tails of interest, takes part in every so many-th round.
CEILING_ROUNDS = 10
BLOCK_SECONDS = (
    2e-4  # calls shorter than this are timed several at a time: a clock read costs about 0.1 microseconds
)
MAX_BLOCK = 2000
# A hot block goes over its buffers this often before the clock starts, and at least so often while it runs (unless that
# takes long): one pass does not bring back what the other arms have pushed out of the cache.
WARM_CALLS = 2
HOT_CALLS = 5
HOT_SECONDS = 5e-3


class Clock(Protocol):
    """Times a block of calls."""

    def block(self, arm: Arm, first: int, count: int, warm: bool) -> float:
        """Seconds per call of ``count`` calls of ``arm`` that begin with buffer set ``first``.

        With ``warm`` the first WARM_CALLS of them are made once, untimed, before the clock starts.
        """
        ...


def _turn(arm: Arm, first: int, count: int) -> Iterator[Callable[[], object]]:
    """``count`` of the arm's calls, beginning with number ``first``, around and around."""
    return itertools.islice(
        itertools.cycle(arm.calls), first % len(arm.calls), first % len(arm.calls) + count
    )


class HostClock:
    """What the caller waits for: a monotonic clock around the calls, the device drained before and after."""

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = device == "cuda"

    def block(self, arm: Arm, first: int, count: int, warm: bool) -> float:
        calls = list(_turn(arm, first, count))
        for call in calls[:WARM_CALLS] if warm else ():
            call()
        if self._cuda:
            torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for call in calls:
            call()
        if self._cuda:
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - start) * 1e-9 / count


class CudaClock:
    """What the device does: events around the calls, with the device kept busy until all of them are queued.

    Without the delay in front, short kernels would be timed at the rate at which the host can launch them.
    """

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)
        self._host_seconds: dict[int, float] = {}

    def block(self, arm: Arm, first: int, count: int, warm: bool) -> float:
        calls = list(_turn(arm, first, count))
        for call in calls[:WARM_CALLS] if warm else ():
            call()
        torch.cuda.synchronize()
        # Clocks stay near 2 GHz or below, so these cycles last longer than queueing the calls did last time.
        delay = min(0.2, 1.5 * self._host_seconds.get(id(arm), 1e-4) * count)
        torch.cuda._sleep(int(delay * 2e9))
        begin = time.perf_counter()
        self._start.record()
        for call in calls:
            call()
        self._stop.record()
        self._host_seconds[id(arm)] = (time.perf_counter() - begin) / count
        torch.cuda.synchronize()
        return float(self._start.elapsed_time(self._stop)) * 1e-3 / count


def clock_for(kind: str, device: str) -> Clock:
    """The clock of a case: events for work on a GPU, else the host's."""
    return CudaClock() if kind == "device" and device == "cuda" else HostClock(device)


def measure(
    arms: Sequence[Arm], clock: Clock, *, budget: float, hot: bool, seed: int = 0, runs: int = 0
) -> dict[str, list[float]]:
    """Seconds per unit of work for every arm, one figure for each round.

    ``budget`` is in seconds for all arms together; at least MIN_ROUNDS rounds are made whatever it is (LONG_MIN_ROUNDS of
    rounds that take longer than LONG_ROUND_SECONDS). ``hot``: the same buffers are used before each block, untimed.
    ``runs``: a figure is one call, without any before it, and there are this many rounds where the budget allows.
    Raises ValueError where two arms share a name.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise ValueError(f"arms of a case need different names, got {names}")
    next_set = dict.fromkeys(names, 0)
    count: dict[str, int] = {}
    warmed: dict[str, bool] = {}
    total = 0.0
    collected = gc.isenabled()
    gc.disable()
    try:
        for arm in arms:
            # Lazy set-up, run-time compilation and the first touch of memory come before anything that counts.
            clock.block(arm, 0, 1, False)
            once = clock.block(arm, 0, 1, False)
            warmed[arm.name] = hot and once < LONG_SECONDS and not runs
            if once < LONG_SECONDS:
                clock.block(arm, 0, max(3, len(arm.calls)), True)
                once = clock.block(arm, 0, max(3, len(arm.calls)), hot)
            count[arm.name] = 1 if runs else max(1, min(MAX_BLOCK, int(BLOCK_SECONDS / max(once, 1e-9))))
            if warmed[arm.name]:
                count[arm.name] = max(count[arm.name], min(HOT_CALLS, 1 + int(HOT_SECONDS / max(once, 1e-9))))
            once *= count[arm.name] + (min(WARM_CALLS, count[arm.name]) if warmed[arm.name] else 0)
            total += once / CEILING_ROUNDS if runs and arm.role == "ceiling" else once
        least = MIN_ROUNDS if total < LONG_ROUND_SECONDS else LONG_MIN_ROUNDS
        rounds = max(least, min(runs or MAX_ROUNDS, int(budget / max(total, 1e-9))))
        samples: dict[str, list[float]] = {name: [] for name in names}
        order = list(arms)
        shuffle = random.Random(seed)
        for number in range(rounds):
            shuffle.shuffle(order)
            for arm in order:
                if runs and arm.role == "ceiling" and number % CEILING_ROUNDS:
                    continue
                seconds = clock.block(arm, next_set[arm.name], count[arm.name], warmed[arm.name])
                next_set[arm.name] += count[arm.name]
                samples[arm.name].append(seconds / arm.per_call)
    finally:
        if collected:
            gc.enable()
    return samples
