"""The printed table of a run's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def show_seconds(seconds: float) -> str:
    """Three or four digits with a unit that suits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def show_least(row: Mapping[str, Any]) -> str:
    """The least bytes and operations of a case."""
    parts = []
    read, written = row["bytes_read"], row["bytes_written"]
    if read or written:
        parts.append(f"{read / 1e6:.3g} MB read + {written / 1e6:.3g} MB written")
    if row["operations"]:
        parts.append(f"{row['operations'] / 1e6:.3g} M operations")
    return "least " + ", ".join(parts) if parts else "no work of its own: all of it is overhead"


def show_tails(row: Mapping[str, Any]) -> str:
    """The slowest calls, where the benchmark is about them, and of how many calls, where the budget did not allow all."""
    tails, samples = row.get("tails"), row["seconds"]["samples"]
    if not tails:
        return ""
    few = f" (of {tails['wanted']} wanted: the budget allows no more)" if samples < tails["wanted"] else ""
    return f"  p99 {show_seconds(tails['p99'])}, p99.9 {show_seconds(tails['p99.9'])} of {samples} calls{few}"


def show_rows(rows: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]) -> str:
    """A block for each case: its least work, then a line for each arm. The last column is the arm's time over the
    candidate's: above 1, the candidate is faster."""
    lines: list[str] = []
    title = None
    columns = (
        f"  {'arm':<28}{'median':>11}{'p20':>11}{'p80':>11}{'rate':>14}{'of ceiling':>12}{'x candidate':>13}"
    )
    for row in rows:
        key = (row["benchmark"], row["case"], row["threads"])
        if key != title:
            title = key
            target = row["params"].get("target")
            lines.append(
                f"\n{row['benchmark']}: {row['case']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}, "
                f"{row['heat']}; {show_least(row)}" + (f"; target: {target}" if target else "")
            )
            lines.append(columns)
            lines += [
                f"  {skip['arm']:<28}skipped: {skip['reason']}"
                for skip in skipped
                if (skip["benchmark"], skip["case"], skip["threads"]) == key
            ]
        seconds, rate, ceiling = row["seconds"], row["rate"], row["ceiling"]
        share = f"{ceiling['share']:.0%}" if ceiling else ""
        over = row["ratios"].get("candidate")
        shown_rate = f"{rate['value']:.4g} {rate['unit']}" if rate else ""
        lines.append(
            f"  {row['arm']:<28}{show_seconds(seconds['median']):>11}{show_seconds(seconds['p20']):>11}"
            f"{show_seconds(seconds['p80']):>11}{shown_rate:>14}"
            f"{share:>12}{f'{over:.2f}' if over else '':>13}{show_tails(row)}"
        )
    return "\n".join(lines)
