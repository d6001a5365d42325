"""The demo's table: what is measured about a sampler, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One sampler. ``seconds`` for all samples; ``sampler_seconds`` an evaluation, with a network that costs nothing.
    Ratios are plain PyTorch's time over this library's (above 1: this library is faster)."""

    name: str
    solver: str
    evaluations: int
    seconds: float
    ratio: float
    sampler_seconds: float
    sampler_ratio: float
    difference: float
    agreement: float
    frechet: float
    near: float
    copies: float


@dataclass(frozen=True)
class Reference:
    """The same measures on real digits, to read the table by."""

    accuracy: float
    frechet_floor: float
    near: float
    copies: float
    median: float
    low: float


@dataclass(frozen=True)
class Report:
    """All that the demo measured. ``drift``: largest change of a pixel of a sample made alone instead of in a batch."""

    rows: tuple[Row, ...]
    reference: Reference
    per_class: int
    guidance: float
    drift: float
    total_seconds: float

    def __str__(self) -> str:
        batch = 10 * self.per_class
        head = ["", "solver", "evals", f"{batch} in s", "plain/ours", "sampler, us", "plain/ours"]
        head += ["as asked", "Frechet", "near", "copies", "|ours-plain|"]
        lines = [head]
        for row in self.rows:
            lines.append(
                [
                    row.name,
                    row.solver,
                    str(row.evaluations),
                    f"{row.seconds:.2f}",
                    f"{row.ratio:.2f}",
                    f"{1e6 * row.sampler_seconds:.0f}",
                    f"{row.sampler_ratio:.2f}",
                    f"{100 * row.agreement:.1f} %",
                    f"{row.frechet:.3f}",
                    f"{100 * row.near:.1f} %",
                    f"{100 * row.copies:.1f} %",
                    f"{row.difference:.0e}",
                ]
            )
        real = self.reference
        shares = [f"{100 * real.near:.1f} %", f"{100 * real.copies:.1f} %"]
        lines.append(
            [
                "real, held out",
                *"------",
                f"{100 * real.accuracy:.1f} %",
                f"{real.frechet_floor:.3f}",
                *shares,
                "-",
            ]
        )
        notes = f"""
{batch} samples, {self.per_class} a class, guidance {self.guidance:g} as one doubled batch; nearly all of their time is the
    network's.
sampler: microseconds an evaluation that are the sampler's own, measured with a network that costs nothing.
plain/ours: time of the same sampler written as a plain eager PyTorch loop over this library's; |ours-plain|: the
    largest difference between their pixels.
as asked: a classifier trained on real digits gives the asked label (real: its accuracy on held-out digits).
Frechet: distance to one half of all real digits on the classifier's 16 features (real: {self.per_class} a class of the
    other half, the floor).
near: nearer to a training digit than half of the training digits are to each other ({real.median:.2f}); copies: than
    95 % of them are ({real.low:.2f}). Euclidean, pixels in [-1, 1] (real: held-out digits, which no network has seen).
Drift with batch: a sample made alone and one made in a batch of {batch} differ by at most {self.drift:.1e}: the
    network's own drift (its matrix products change with the batch; the sampler's steps do not).
Total: {self.total_seconds:.0f} s, both trainings included."""
        return _columns(lines) + "\n" + notes


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Text in aligned columns: the first to the left, the rest to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )
