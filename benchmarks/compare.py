"""Two result files side by side. A difference is named only where the noise cannot have made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.results import row_key

NO_DIFFERENCE = "no difference that the noise allows"


@dataclass(frozen=True)
class Verdict:
    """``ratio`` is B's median over A's: under 1, B is faster. ``noise`` is the larger of the two rows' noise."""

    ratio: float
    noise: float
    text: str


def judge(a: Mapping[str, Any], b: Mapping[str, Any]) -> Verdict:
    """The verdict on two ``seconds`` records: B is faster or slower where the intervals p20..p80 do not overlap and the
    ratio of the medians is larger than what repeating the same measurement gave in either file."""
    ratio = b["median"] / a["median"]
    noise = max(a["noise"], b["noise"])
    if b["p80"] < a["p20"] and 1 / ratio > noise:
        return Verdict(ratio, noise, f"faster, {1 / ratio:.2f} times")
    if b["p20"] > a["p80"] and ratio > noise:
        return Verdict(ratio, noise, f"slower, {ratio:.2f} times")
    return Verdict(ratio, noise, NO_DIFFERENCE)


def differing_conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What the two files do not have in common and ought to, for a verdict about the code."""
    found = []
    for name in ("device", "cpu", "cores", "instruction_set"):
        if a[name] != b[name]:
            found.append(f"{name}: {a[name]} against {b[name]}")
    for name in sorted(set(a["versions"]) | set(b["versions"])):
        if name != "pyflowcore" and a["versions"].get(name) != b["versions"].get(name):
            found.append(f"{name} version: {a['versions'].get(name)} against {b['versions'].get(name)}")
    for name in ("budget", "repeats"):
        if a["options"].get(name) != b["options"].get(name):
            found.append(f"option {name}: {a['options'].get(name)} against {b['options'].get(name)}")
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The whole comparison as text: conditions that differ, a line for each common row, and what only one file has."""
    rows_a = {row_key(row): row for row in a["rows"]}
    rows_b = {row_key(row): row for row in b["rows"]}
    lines = [f"A: {a['date']} {a['commit'] or 'no commit'}", f"B: {b['date']} {b['commit'] or 'no commit'}"]
    conditions = differing_conditions(a, b)
    if conditions:
        lines.append("The files differ in more than the code, so no verdict below is about the code alone:")
        lines += [f"  {condition}" for condition in conditions]
    counts = {"faster": 0, "slower": 0, NO_DIFFERENCE: 0}
    title = None
    for key, row in rows_a.items():
        if key not in rows_b:
            continue
        benchmark, case, threads, arm = key
        if title != (benchmark, case, threads):
            title = (benchmark, case, threads)
            lines.append(f"\n{benchmark}: {case}, {threads} thread{'s' if threads > 1 else ''}")
        verdict = judge(row["seconds"], rows_b[key]["seconds"])
        counts[next(word for word in counts if verdict.text.startswith(word))] += 1
        times = [one["seconds"]["median"] * 1e6 for one in (row, rows_b[key])]
        lines.append(
            f"  {arm:<24} A {times[0]:>11.1f} us  B {times[1]:>11.1f} us"
            f"  B/A {verdict.ratio:5.2f}  noise {verdict.noise:4.2f}  {verdict.text}"
        )
    for name, own, other in (("A", rows_a, rows_b), ("B", rows_b, rows_a)):
        alone = [key for key in own if key not in other]
        if alone:
            lines.append(f"\nonly in {name}: {len(alone)} rows, the first of them {alone[0]}")
    lines.append("\nB against A: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    return "\n".join(lines)
