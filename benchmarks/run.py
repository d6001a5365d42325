"""From entries to rows: build each case, check it, time it several times over, and put the figures side by side."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import machine, results, timing
from benchmarks.options import Options
from benchmarks.registry import Arm, Case, Entry
from benchmarks.summary import Summary, summarise

ClockFor = Callable[[str, str], timing.Clock]


def _rate(case: Case, seconds: float) -> dict[str, Any]:
    """Least bytes per second where the case moves any, else operations per second, else nothing."""
    if case.footprint:
        return {"value": case.footprint / seconds * 1e-9, "unit": "GB/s"}
    if case.operations:
        return {"value": case.operations / seconds * 1e-9, "unit": "Gop/s"}
    return {}


def _rows(
    entry: Entry, case: Case, threads: int, arms: Sequence[tuple[str, str]], summaries: dict[str, Summary]
) -> list[dict[str, Any]]:
    """The rows of a case. The ceiling is the fastest ceiling arm: the strictest of the copies run beside it."""
    ceilings = [(summaries[name].median, name) for name, role in arms if role == "ceiling"]
    candidates = [name for name, role in arms if role == "candidate"]
    rows = []
    for name, role in arms:
        summary = summaries[name]
        ratios: dict[str, float] = {}
        if role == "candidate":
            others = [other for other, kind in arms if kind != "candidate"]
            ratios = {other: summaries[other].median / summary.median for other in others}
        if candidates and name != candidates[0]:
            ratios["candidate"] = summary.median / summaries[candidates[0]].median
        ceiling = None
        if ceilings and role != "ceiling":
            seconds, ceiling_name = min(ceilings)
            ceiling = {"arm": ceiling_name, "seconds": seconds, "share": seconds / summary.median}
        rows.append(
            {
                "benchmark": entry.name,
                "case": case.name,
                "params": {**case.params, **({"target": case.target} if case.target else {})},
                "threads": threads,
                "arm": name,
                "role": role,
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
                "bytes_read": case.bytes_read,
                "bytes_written": case.bytes_written,
                "operations": case.operations,
                "rate": _rate(case, summary.median),
                "ceiling": ceiling,
                "ratios": ratios,
            }
        )
    return rows


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
    arms: dict[str, list[tuple[str, str]]] = {}
    samples: dict[str, dict[str, list[list[float]]]] = {}
    skipped: dict[tuple[str, str], str] = {}
    for repeat in range(options.repeats):
        for case in entry.cases(options):
            if options.only not in case.name:
                continue
            say(f"{entry.name}: {case.name} ({repeat + 1} of {options.repeats})")
            built = case.build()
            chosen: list[Arm] = []
            for arm in built.arms:
                if arm.name in options.without and arm.role == "baseline":
                    skipped[case.name, arm.name] = "left out by --without"
                else:
                    chosen.append(arm)
            skipped.update({(case.name, name): reason for name, reason in built.skipped.items()})
            if built.check is not None and repeat == 0:
                built.check()
            clock = clock_for(case.clock, options.device)
            taken = timing.measure(chosen, clock, budget=options.budget, hot=case.heat == "hot", seed=repeat)
            cases[case.name] = case
            arms[case.name] = [(arm.name, arm.role) for arm in chosen]
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
