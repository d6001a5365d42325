"""What a benchmark is: an entry that states its least work and baselines, made of cases, made of arms."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.options import Options

Role = Literal["candidate", "baseline", "ceiling"]
ROLES: tuple[Role, ...] = ("candidate", "baseline", "ceiling")


@dataclass(frozen=True)
class Arm:
    """One thing that is timed: a call for each buffer set, all of them doing the same work on different memory.

    ``per_call`` is how many units (for example sampler steps) one call does; times are given per unit. ``operations`` is set
    for a ceiling on the *rate* of operations, such as a matrix product of a size of its own: how many one call of it does.
    The ceiling of the case is then the time that the case's operations would take at that rate; the ceilings of a case are
    all of one kind. ``less`` names an arm whose median is subtracted: what this one takes beyond that. At least a
    nanosecond remains.
    """

    name: str
    role: Role
    calls: Sequence[Callable[[], object]]
    per_call: int = 1
    operations: int = 0
    less: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, got {self.role!r}")
        if not self.calls:
            raise ValueError(f"calls of arm {self.name!r} must hold at least one callable, got none")
        if self.per_call < 1:
            raise ValueError(f"per_call must be at least 1, got {self.per_call}")
        if self.operations and self.role != "ceiling":
            raise ValueError(
                f"operations of arm {self.name!r} are for a ceiling alone, its role is {self.role!r}"
            )


@dataclass(frozen=True)
class Built:
    """The arms of a case with their memory allocated. ``check`` raises if the arms do not compute the same thing.

    ``operations`` takes the place of the case's own where only the work itself can tell them (an adaptive solve).
    """

    arms: Sequence[Arm]
    skipped: dict[str, str] = field(default_factory=dict)
    check: Callable[[], None] | None = None
    operations: int | None = None


@dataclass(frozen=True)
class Case:
    """One line of questions: how long does this work take, of the given least bytes and operations, on these sizes.

    ``heat`` says where the operands lie when an arm starts: "hot" (one buffer set that fits the caches and has just
    been used by the same arm), "streamed" (one set that is larger than the caches) or "rotated" (several sets, taken
    in turn, together larger than the caches). ``clock`` is "device" for work on a device, "host" for what the caller
    waits for. ``build`` allocates; it is called once for each repeat, so that memory placement varies too. ``runs``: the
    slowest calls matter too, so each is timed by itself, this many over all repeats or as many as the budget allows, and
    rows have their tails. Nothing is warmed up before a call then: it comes when the machine has done other things.
    """

    name: str
    params: dict[str, Any]
    bytes_read: int
    bytes_written: int
    operations: int
    heat: Literal["hot", "streamed", "rotated"]
    build: Callable[[], Built]
    clock: Literal["device", "host"] = "device"
    target: str = ""
    runs: int = 0

    @property
    def footprint(self) -> int:
        """Bytes read plus bytes written."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class Entry:
    """A registered benchmark. ``cases`` yields what is measured under the given options."""

    name: str
    summary: str
    least: str
    baselines: tuple[str, ...]
    cases: Callable[[Options], Iterator[Case]]


ENTRIES: dict[str, Entry] = {}

# The modules that hold entries, in the order in which `list` shows them. A new benchmark is one file and one name here.
MODULES = (
    "ceilings",
    "combine",
    "guide",
    "randn",
    "interpolate",
    "tokens",
    "block",
    "block_in_place",
    "dispatch",
    "sampler_vs_diffusers",
    "engine",
    "solve",
    "log_prob",
    "backbones",
    "policy",
)


def benchmark(
    name: str, *, summary: str, least: str, baselines: Sequence[str]
) -> Callable[[Callable[[Options], Iterator[Case]]], Callable[[Options], Iterator[Case]]]:
    """Register a generator of cases under ``name``.

    ``least`` states in words the least bytes and operations that the work needs; each case carries the numbers.
    Raises ValueError where the name is taken, or a statement is missing.
    """
    if not name.isidentifier():
        raise ValueError(f"name must be an identifier, got {name!r}")
    if not summary.strip() or not least.strip():
        raise ValueError(f"benchmark {name!r} must state a summary and its least bytes and operations")

    def register(cases: Callable[[Options], Iterator[Case]]) -> Callable[[Options], Iterator[Case]]:
        if name in ENTRIES:
            raise ValueError(f"name {name!r} is already a registered benchmark")
        ENTRIES[name] = Entry(name, summary, least, tuple(baselines), cases)
        return cases

    return register


def load() -> dict[str, Entry]:
    """Import every module that holds entries and return them by name, in listing order."""
    for module in MODULES:
        importlib.import_module(f"benchmarks.{module}")
    return ENTRIES


def find(names: Sequence[str]) -> list[Entry]:
    """The entries called ``names`` ("all" for every one). Raises ValueError that lists what there is."""
    entries = load()
    if list(names) == ["all"]:
        return list(entries.values())
    unknown = [name for name in names if name not in entries]
    if unknown:
        raise ValueError(f"NAME must be 'all' or among {', '.join(entries)}; got {', '.join(unknown)}")
    return [entries[name] for name in names]
