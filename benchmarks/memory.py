"""Where operands lie: in the caches, streamed through them, or in buffer sets that are taken in turn."""

from __future__ import annotations

from typing import Literal

from benchmarks.machine import cache_bytes

Heat = Literal["hot", "streamed", "rotated"]
MAX_SETS = 128
# A set this many times the cache leaves nothing of itself behind; rotated sets together are as large.
BEYOND = {"cpu": 2, "cuda": 4}


def sets_to_rotate(resident: int, device: str) -> int:
    """How many sets of ``resident`` bytes are together BEYOND the cache of ``device``; at most MAX_SETS."""
    return max(1, min(MAX_SETS, -(-BEYOND[device] * cache_bytes(device) // max(resident, 1))))


def heat_of(resident: int, device: str) -> Heat:
    """How a set of ``resident`` bytes is to be measured.

    CPU: "hot" where the set fits the last cache, as a sampler's state does between two small evaluations. CUDA: hot
    only where MAX_SETS sets would not fill the L2 cache; else rotated. "streamed" where one set is BEYOND the cache.
    """
    cache = cache_bytes(device)
    if resident >= BEYOND[device] * cache:
        return "streamed"
    if device == "cpu":
        return "hot" if resident <= cache else "rotated"
    return "rotated" if resident * MAX_SETS >= BEYOND[device] * cache else "hot"


def sets_for(resident: int, device: str) -> tuple[Heat, int]:
    """The heat of a set of ``resident`` bytes, and the number of sets to allocate."""
    heat = heat_of(resident, device)
    return heat, sets_to_rotate(resident, device) if heat == "rotated" else 1
