"""The options of a run, and how sizes are written: 4096, 4K, 1M (powers of 1024)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """The number of elements that ``text`` ("4096", "4K", "16M") means. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text.strip().upper())
    if not match or int(match[1]) == 0:
        raise ValueError(f"size must be a positive number with an optional K, M or G; got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes separated by commas."""
    return tuple(parse_size(part) for part in text.split(","))


def parse_threads(text: str) -> tuple[int, ...]:
    """Thread counts separated by commas. Raises ValueError for anything but positive integers."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"threads must be positive integers separated by commas; got {text!r}")
    return tuple(int(part) for part in parts)


def show_size(n: int) -> str:
    """The shortest way to write ``n`` that parse_size reads back."""
    for unit in ("G", "M", "K"):
        if n % _UNITS[unit] == 0:
            return f"{n // _UNITS[unit]}{unit}"
    return str(n)


@dataclass(frozen=True)
class Options:
    """What a run was asked for. ``sizes`` is None where each entry is to use its own."""

    device: str = "cpu"
    threads: int = 1
    sizes: tuple[int, ...] | None = None
    budget: float = 0.4
    repeats: int = 3
    only: str = ""
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {self.device!r}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.budget <= 0:
            raise ValueError(f"budget must be a positive number of seconds, got {self.budget}")
        if self.repeats < 2:
            raise ValueError(
                f"repeats must be at least 2, for the noise is measured by repeating; got {self.repeats}"
            )

    def choose_sizes(self, cpu: tuple[int, ...], cuda: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes asked for, else the entry's own for this device."""
        return self.sizes or (cuda if self.device == "cuda" else cpu)
