"""Run: one trajectory under way. The caller evaluates the field and hands the output over, row by row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _core
from ._library import PyflowcoreWarning
from .buffers import FunctionalBuffers, InPlaceBuffers, is_several
from .field import Field
from .given_noise import GivenNoise, before_rows
from .guide import Guide
from .plans import Plan
from .program import Program

__all__ = ["Run", "Step", "Trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """The states at the grid points: times [S + 1] float64, states [S + 1, B, ...]."""

    times: Tensor
    states: Tensor


@dataclass
class Step:
    """One evaluation to be made.

    Attributes:
        x: where to evaluate the field, [B, ...] (the branches stacked, [J B, ...], inside ``Sampler.__call__``), in the field's
            dtype. It is the trajectory's own buffer: read it, do not write it, and clone what must outlive the step.
        time: the network's time, [B] (or [J B], or 0-dimensional for ``time_shape="scalar"``).
        t: the plan's time, a float; 0 is noise, 1 is data.
        branches: where guidance wants conditional outputs and an unconditional one their number, 2 for one condition; else 1.
        row, index: the plan's row; the step of the grid.
    """

    x: Tensor
    time: Tensor
    t: float
    branches: int
    row: int
    index: int


@torch.compiler.assume_constant_result
def denoise_table(plan: Plan, sign: int, origin: tuple[int, ...] | None) -> tuple[Tensor, list[bool]]:
    """A table whose rows, the plan's or those that come from them, only convert: their prediction is the data; and which rows
    determine it."""
    r = _core.record
    table = torch.zeros_like(plan.table)
    for i, (p, q) in enumerate(plan.data_coefficients()):
        for name, value in (
            ("evaluates", 1.0),
            ("store", -1.0),
            ("in_scale", 1.0),
            ("p", p),
            ("q", sign * q),
            ("a", 1.0),
            ("c", 1.0),
        ):
            table[i, r[name]] = value
        table[i, r["draw"] : r["draw"] + r["max_draws"]] = -1.0
    table = table if origin is None else table[list(origin)]
    return table, table.isfinite().all(1).tolist()


def version_of(x: Tensor) -> int:
    """Counts the writes to a tensor. Inside torch.inference_mode() tensors count none, and writes go unseen."""
    return -1 if x.is_inference() else x._version


def _not_watched(x: Tensor) -> int:
    """A compiled function cannot ask, and its graph knows every write."""
    return -1


class Run:
    """A trajectory that its caller drives::

        run = sampler.start(x0=noise, seeds=seeds)
        for step in run:
            run.step(net(step.x, step.time))
        x1 = run.x

    Rows that evaluate nothing run by themselves. Everything that changes while sampling lives here, nothing in the Sampler.
    """

    def __init__(
        self, plan: Plan, program: Program, x0: Tensor, *, branches: list[int], stacked: bool, times: Sequence[Tensor],
        dtype: torch.dtype, guidance: Tensor | None, seeds: Tensor | None, differentiable: bool,
        noise: GivenNoise | None = None, keep_points: bool = False, guide: Guide | None = None,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.branches, self.guidance = branches, guidance
        self._stacked = stacked
        self._batch, self._device = x0.shape[0], x0.device
        # Of one branch, of the conditional ones, and of all.
        most = max(max(branches, default=1), 2)
        self._shape, self._conditional, self._all = (
            torch.Size((n * x0.shape[0], *x0.shape[1:])) for n in (1, most - 1, most)
        )
        self._facts, self._origin = program.facts, program.origin
        # Where the loop stops for the caller: at evaluations, and at the end. A row whose velocity is taken to be zero has no
        # branch and is not evaluated.
        facts = program.facts
        self._stops = [*[row.evaluates and n > 0 for row, n in zip(facts, branches, strict=True)], True]
        # What a step says besides its input.
        origin = range(len(facts)) if program.origin is None else program.origin
        self._due = list(
            zip(times, [row.t for row in facts], branches, origin, [row.step for row in facts], strict=True)
        )
        self._guide = guide
        kind = FunctionalBuffers if differentiable else InPlaceBuffers
        views = [max(n, 1) for n in branches]
        self.buffers = kind(program, x0, views, stacked, dtype, guidance, seeds, keep_points, guide)
        self._advance, self._silent = self.buffers.advance, self.buffers.silent
        if noise is not None and program.fills:
            fill = before_rows(self.buffers, program.fills, noise)
            self._advance = _after(fill, self._advance)
            self._silent = _after(fill, self._silent)
        self._points_kept = keep_points
        self.nfe = 0
        self._row = 0
        self._pending: Step | None = None
        self.version_of = _not_watched if torch.compiler.is_compiling() else version_of
        self._versions = -1, -1
        self._at_grid: list[Callable[[int], None]] = []

    def at_grid(self, action: Callable[[int], None]) -> None:
        """Has ``action(step)`` called after each step of the grid, after those that were added before."""
        self._at_grid.append(action)

    def begin(self, x0: Tensor) -> None:
        """Starts once more, from another state of the same shape, in the memory that the run has."""
        assert isinstance(self.buffers, InPlaceBuffers)
        self.buffers.begin(x0)
        self.nfe, self._row, self._pending = 0, 0, None
        self.advance_silent()

    @property
    def x(self) -> Tensor:
        """The state, [B, ...]; the samples once the run is done."""
        return self.buffers.result() if self.done else self.buffers.x

    @property
    def done(self) -> bool:
        """True when every row has run."""
        return self._row == len(self._facts)

    def advance_silent(self) -> None:
        """Runs the rows up to the next evaluation. Once before the first step; afterwards ``step`` does it."""
        while not self._stops[self._row]:
            self._silent(self._row)
            self._finish_row()

    def _finish_row(self) -> None:
        row = self._row
        self._row += 1
        if self._at_grid and self._facts[row].completes_step:
            for action in self._at_grid:
                action(self._facts[row].step)

    def __iter__(self) -> Iterator[Step]:
        while not self.done:
            step = self.next()
            yield step
            if self._pending is step:
                raise RuntimeError(
                    f"run.step(...) was not called for row {step.row}: the trajectory cannot go on"
                )

    def next(self) -> Step:
        """The evaluation that is due. Asked again before ``step`` it is the same one."""
        if self.done:
            raise RuntimeError("the run is done: run.x has the samples")
        if self._pending is None:
            row = self._row
            step = self._pending = Step(self.buffers.inputs(row), *self._due[row])
            version_of = self.version_of
            self._versions = version_of(step.x), version_of(step.time)
        return self._pending

    def step(self, out: Tensor, uncond: Tensor | None = None) -> None:
        """Takes the field's output at ``next()`` and moves on.

        Args:
            out: the output there, [B, ...], any float dtype and strides; under guidance the conditional one, or both stacked as
                [2 B, ...], conditional first. Of J - 1 conditions: [(J - 1) B, ...], or all stacked as [J B, ...].
            uncond: the unconditional output [B, ...]. Where guidance wants one and none comes, ``out`` is taken as it is.

        Raises:
            TypeError, ValueError: an output of another shape, dtype or device than the state's; an input that was written.
            RuntimeError: the run is done.
        """
        step = self._pending or self.next()
        self._check(out, uncond, step)
        if uncond is not None and step.branches == 1:
            uncond = None  # outside the interval, or scale 1: the conditional output alone
        self._advance(self._row, out, uncond)
        self._pending = None
        self.nfe += 1
        self._finish_row()
        if not self._stops[self._row]:
            self.advance_silent()

    def _check(self, out: Tensor, uncond: Tensor | None, step: Step) -> None:
        """Nothing but comparisons where all is well."""
        pair = uncond is None and step.branches > 1
        shape = self._shape if uncond is None or step.branches == 1 else self._conditional
        self._check_output("out", out, self._all if pair and self._stacked else shape, pair)
        if uncond is not None:
            self._check_output("uncond", uncond, self._shape, False)
            if uncond.dtype != out.dtype:
                raise TypeError(f"uncond is {uncond.dtype}, out is {out.dtype}; they must agree")
        # Writing into the input would change the state unseen, writing into the time what a second call sees.
        version_of = self.version_of
        if (version_of(step.x), version_of(step.time)) != self._versions:
            name = "x" if version_of(step.x) != self._versions[0] else "time"
            raise ValueError(
                f"the field wrote into its input {name}, which is the trajectory's own buffer; clone it there"
            )

    def _check_output(self, name: str, value: Tensor, shape: torch.Size, pair: bool) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}, the field's output, must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}, the field's output, must be floating point, got {value.dtype}")
        if value.device != self._device:
            raise ValueError(
                f"{name}, the field's output, is on {value.device}, the state is on {self._device}"
            )
        if value.shape != shape and not (pair and value.shape == self._all):
            raise ValueError(
                f"{name}, the field's output, has shape {list(value.shape)}, expected {list(shape)}"
            )
        if pair and not self._stacked and value.shape != self._all:
            warnings.warn(
                "guidance wants a conditional and an unconditional output, one came: it is taken as it is, the guidance scale "
                "has no effect",
                PyflowcoreWarning,
                stacklevel=4,
            )

    def denoiser(self, field: Field) -> Callable[[Tensor, Tensor | None], Tensor | None]:
        """What gives the predicted data at the pending evaluation, state's dtype, from the field's output; None where its
        prediction does not determine it."""
        if not self._points_kept:
            raise RuntimeError(
                "this run does not keep its points: only the Sampler's own loop with a callback does"
            )
        table, determined = denoise_table(self.plan, field.sign, self._origin)

        def denoised(out: Tensor, uncond: Tensor | None) -> Tensor | None:
            self.next()
            row = self._row
            if not determined[row]:
                return None
            outs = [out] if uncond is None else [out, uncond]
            point = self.buffers.point(row).to(self.buffers.x.dtype)
            if self._guide is not None and is_several(out, uncond, point):
                outs = [self._guide.guided(row, point, outs, keep=False)]
            _, _, d = torch.ops.pyflowcore.combine(point, None, [], outs, self.guidance, None, table, row)
            return d

        return denoised


def _after(fill: Callable[[int], None], advance: Callable[..., None]) -> Callable[..., None]:
    """Fills a row's given noise, then runs it."""

    def both(row: int, *outs: Tensor | None) -> None:
        fill(row)
        advance(row, *outs)

    return both
