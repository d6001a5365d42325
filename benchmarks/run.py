"""From entries to rows: build each case, check it, time it several times over, and put the figures side by side."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import machine, results, timing
from benchmarks.options import Options
from benchmarks.registry import Arm, Case, Entry
from benchmarks.summary import Summary, quantile, summarise

ClockFor = Callable[[str, str], timing.Clock]


@dataclass(frozen=True)
class _Taken:
    """What the rows say of an arm once its calls are gone. ``own_work``: it does not do the case's work, but its own."""

    role: str
    operations: int
    own_work: bool


def _rate(footprint: int, operations: int, seconds: float) -> dict[str, Any]:
    """Least bytes per second where the case moves any, else operations per second, else nothing."""
    if footprint:
        return {"value": footprint / seconds * 1e-9, "unit": "GB/s"}
    if operations:
        return {"value": operations / seconds * 1e-9, "unit": "Gop/s"}
    return {}


def _rows(
    entry: Entry, case: Case, threads: int, arms: dict[str, _Taken], summaries: dict[str, Summary]
) -> list[dict[str, Any]]:
    """The rows of a case. The ceiling is the fastest ceiling arm: the strictest of those run beside it."""
    ceilings = []
    for name, arm in arms.items():
        if arm.role == "ceiling":
            scale = case.operations / arm.operations if arm.own_work else 1.0
            if scale > 0:
                ceilings.append((summaries[name].median * scale, name))
    candidates = [name for name, arm in arms.items() if arm.role == "candidate"]
    rows = []
    for name, arm in arms.items():
        summary = summaries[name]
        ratios: dict[str, float] = {}
        if arm.role == "candidate":
            others = [other for other, that in arms.items() if that.role != "candidate" and not that.own_work]
            ratios = {other: summaries[other].median / summary.median for other in others}
        if candidates and name != candidates[0] and not arm.own_work:
            ratios["candidate"] = summary.median / summaries[candidates[0]].median
        tails = {}
        if case.runs and arm.role != "ceiling":
            tails = {"p99": summary.p99, "p99.9": summary.p999, "wanted": case.runs}
        ceiling = None
        if ceilings and arm.role != "ceiling":
            seconds, ceiling_name = min(ceilings)
            ceiling = {"arm": ceiling_name, "seconds": seconds, "share": seconds / summary.median}
        rows.append(
            {
                "benchmark": entry.name,
                "case": case.name,
                "params": {**case.params, **({"target": case.target} if case.target else {})},
                "threads": threads,
                "arm": name,
                "role": arm.role,
                "heat": case.heat,
                "clock": case.clock,
                "seconds": {
                    "median": summary.median,
                    "p20": summary.p20,
                    "p80": summary.p80,
                    "samples": summary.samples,
                    "repeat_medians": list(summary.repeat_medians),
                    "noise": summary.noise,
                },
                **({"tails": tails} if tails else {}),
                "bytes_read": 0 if arm.own_work else case.bytes_read,
                "bytes_written": 0 if arm.own_work else case.bytes_written,
                "operations": arm.operations,
                "rate": _rate(0 if arm.own_work else case.footprint, arm.operations, summary.median),
                "ceiling": ceiling,
                "ratios": ratios,
            }
        )
    return rows


def _subtracted(arms: Sequence[Arm], taken: dict[str, list[float]]) -> dict[str, list[float]]:
    """``taken``, of each arm with ``less`` what is beyond the median of the arm that it names."""
    less = {arm.name: quantile(taken[arm.less], 0.5) if arm.less else 0.0 for arm in arms}
    return {
        name: [max(one - less[name], 1e-9) if less[name] else one for one in seconds]
        for name, seconds in taken.items()
    }


def run_entry(
    entry: Entry,
    options: Options,
    *,
    clock_for: ClockFor = timing.clock_for,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and skipped arms of one entry.

    All cases are gone through ``options.repeats`` times, each time with fresh memory: what changes from one time to the
    next is the noise that `compare` counts.
    """
    cases: dict[str, Case] = {}
    arms: dict[str, dict[str, _Taken]] = {}
    samples: dict[str, dict[str, list[list[float]]]] = {}
    skipped: dict[tuple[str, str], str] = {}
    for repeat in range(options.repeats):
        for case in entry.cases(options):
            if options.only not in case.name:
                continue
            say(f"{entry.name}: {case.name} ({repeat + 1} of {options.repeats})")
            built = case.build()
            if built.operations is not None:
                case = replace(case, operations=built.operations)
            chosen: list[Arm] = []
            needed = {arm.less for arm in built.arms}
            for arm in built.arms:
                if arm.name in options.without and arm.role == "baseline" and arm.name not in needed:
                    skipped[case.name, arm.name] = "left out by --without"
                else:
                    chosen.append(arm)
            skipped.update({(case.name, name): reason for name, reason in built.skipped.items()})
            if built.check is not None and repeat == 0:
                built.check()
            clock = clock_for(case.clock, options.device)
            runs = -(-case.runs // options.repeats)
            taken = timing.measure(
                chosen, clock, budget=options.budget, hot=case.heat == "hot", seed=repeat, runs=runs
            )
            taken = _subtracted(chosen, taken)
            cases[case.name] = case
            arms[case.name] = {
                arm.name: _Taken(arm.role, arm.operations or case.operations, bool(arm.operations))
                for arm in chosen
            }
            kept = samples.setdefault(case.name, {})
            for name, seconds in taken.items():
                kept.setdefault(name, []).append(seconds)
            del built, chosen
    rows = []
    for name, case in cases.items():
        summaries = {arm: summarise(repeats) for arm, repeats in samples[name].items()}
        rows += _rows(entry, case, options.threads, arms[name], summaries)
    notes = [
        {"benchmark": entry.name, "case": case_name, "threads": options.threads, "arm": arm, "reason": reason}
        for (case_name, arm), reason in skipped.items()
    ]
    return rows, notes


def run(
    entries: Sequence[Entry],
    options: Sequence[Options],
    *,
    show: Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], None],
    clock_for: ClockFor = timing.clock_for,
) -> dict[str, Any]:
    """The whole result as a file holds it. ``options``: one for each thread count; ``show`` gets each entry's rows."""

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for entry in entries:
        for chosen in options:
            torch.set_num_threads(chosen.threads)
            with torch.no_grad():
                new_rows, new_skipped = run_entry(entry, chosen, clock_for=clock_for, say=say)
            say("")
            show(new_rows, new_skipped)
            rows += new_rows
            skipped += new_skipped
    described = machine.describe(options[0].device)
    asked = asdict(options[0])
    del asked["threads"], asked["device"]
    asked = json.loads(json.dumps(asked))  # tuples become the lists that the file will hold
    return {
        "format": results.FORMAT,
        "schema": results.SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **described,
        "threads": [chosen.threads for chosen in options],
        "options": asked,
        "rows": rows,
        "skipped": skipped,
    }
