"""The pairs (x0, x1) that a plan is fitted to: noise and what a teacher makes of it, with their conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import conditions, grids
from .building import plan
from .field import Field
from .guidance import CFG
from .ops import randn
from .plans import Plan
from .sampler import Sampler

__all__ = ["Pairs", "make_pairs"]

_TEACHER_STEPS = 200


@dataclass(frozen=True)
class Pairs:
    """Starts and targets [N, ...], the training pairs' and the held-out ones' numbers, and the conditions of all."""

    x0: Tensor
    x1: Tensor
    training: Tensor
    held_out: Tensor
    cond: dict[str, Any]
    uncond: dict[str, Any]
    shared: dict[str, Any]
    ends: tuple[float, float] | None  # the teacher's first and last time, if it has any

    def arguments(self, index: Tensor) -> dict[str, Any]:
        """What the field is called with for some of the pairs, on the conditional branch."""
        return {**_take(self.cond, index), **self.shared}

    def solve(self, sampler: Sampler, field: Field, index: Tensor, enable_grad: bool = False) -> Tensor:
        """The samples of some of the pairs."""
        x1 = sampler(
            field, x0=self.x0[index], dtype=self.x0.dtype, cond=_take(self.cond, index), uncond=_take(self.uncond, index),
            shared=self.shared, enable_grad=enable_grad,
        )  # fmt: skip
        assert isinstance(x1, Tensor)  # no trajectory was asked for
        return x1

    def check_times(self, first: float, last: float) -> None:
        """The plan that is fitted goes between the teacher's times."""
        if self.ends is not None and self.ends != (first, last):
            raise ValueError(
                f"teacher goes from t = {self.ends[0]:g} to {self.ends[1]:g}, init from {first:g} to {last:g}; they must agree"
            )


def make_pairs(
    field: Field, teacher: Any, *, grid: Any, shape: Sequence[int] | None, x0: Tensor | None, samples: int | None,
    validation: int | None, cond: Any, uncond: dict[str, Any] | None, shared: dict[str, Any] | None, guidance: CFG | None,
    branches: str, batch: int, seed: int, device: Any, dtype: torch.dtype | None,
) -> Pairs:  # fmt: skip
    """Pairs from a teacher, or as they are given; the last ones are held out."""
    x1: Tensor | None = None
    if isinstance(teacher, tuple):
        if x0 is not None:
            raise ValueError("x0 is given twice: teacher is pairs (x0, x1) already")
        x0, x1 = _given_pairs(teacher)
    if x0 is not None:
        if shape is not None:
            raise ValueError("shape: given as well as x0, whose shape says it")
        train, held = _split(samples, validation, len(x0))
    else:
        train, held = 512 if samples is None else samples, 512 if validation is None else validation
        for name, value in (("samples", train), ("validation", held)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
    count = train + held
    chosen = None if x1 is not None else _teacher(teacher, field, grid)
    # Seeds far from those that a user's samples begin with; any two fits with another seed share none.
    seeds = torch.arange(count, dtype=torch.int64) + (((seed + 1) << 32) & (2**62 - 1))
    if x0 is None:
        assert chosen is not None
        if shape is None:
            raise ValueError("shape is missing: give the shape of one sample, or x0, or pairs as the teacher")
        if chosen.times[0] != 0.0:
            raise ValueError(
                f"x0 is missing: the teacher begins at t = {chosen.times[0]:g}, where the state is not noise alone"
            )
        x0 = randn(seeds, shape, dtype=dtype or torch.float32) * field.path.noise_scale
        x0 = x0.to(device if device is not None else field.device() or "cpu")
    else:
        x0 = x0.detach().to(
            device=device, dtype=dtype or (x0.dtype if x0.dtype == torch.float64 else torch.float32)
        )
    given = cond(seeds) if callable(cond) else cond or {}
    _check_rows(given, count, "cond")
    unconditional = {
        key: conditions.fill(given[key], value, f"[{key!r}]") if key in given else value
        for key, value in (uncond or {}).items()
    }
    index = torch.arange(count)
    pairs = Pairs(
        x0, x0 if x1 is None else x1.detach().to(x0.device), index[:train], index[train:], given, unconditional,
        shared or {}, None if chosen is None else (chosen.times[0], chosen.times[-1]),
    )  # fmt: skip
    if chosen is None:
        return pairs
    sampler = Sampler(chosen, guidance, branches=branches)
    x1 = torch.cat([pairs.solve(sampler, field, part) for part in index.split(batch)])
    if not bool(torch.isfinite(x1).all()):
        raise ValueError(f"teacher: {chosen.solver!r} makes samples that are not finite of this field")
    return Pairs(**{**pairs.__dict__, "x1": x1})


def _teacher(teacher: Any, field: Field, grid: Any) -> Plan:
    if isinstance(teacher, str):
        chosen = grids.get(grid)
        steps: int | None = _TEACHER_STEPS
        if (fixed := chosen.fixed_steps) is not None:
            # An array of times, with points put between them until there are steps enough.
            times = np.asarray(chosen.times_on(field.path, fixed))
            parts = -(-_TEACHER_STEPS // fixed)
            grid, steps = np.interp(np.arange(fixed * parts + 1) / parts, np.arange(fixed + 1), times), None
        start = "single" if teacher in ("ab2", "ab3", "ab4") else None
        teacher = plan(teacher, steps, grid=grid, path=field.path, prediction=field.prediction, start=start)
    if not isinstance(teacher, Plan):
        raise TypeError(
            f"teacher must be a pfc.Plan, a solver's name or a pair of tensors (x0, x1), got {type(teacher).__name__}"
        )
    if teacher.along != teacher.path:
        raise ValueError(
            f"teacher integrates along the {teacher.along.name} path; a learned plan goes along the field's own, "
            f"{teacher.path.name}"
        )
    if teacher.draws:
        raise ValueError(f"teacher: {teacher.solver!r} draws noise, so its samples are no function of x0")
    return teacher


def _given_pairs(teacher: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    if len(teacher) != 2 or not all(isinstance(t, Tensor) for t in teacher):
        raise TypeError("teacher: pairs are a tuple of two tensors (x0, x1)")
    x0, x1 = teacher
    if x0.shape != x1.shape or x0.dim() < 1:
        raise ValueError(f"teacher: x0 has shape {list(x0.shape)}, x1 {list(x1.shape)}; they must agree")
    if not (x0.is_floating_point() and x1.is_floating_point()):
        raise TypeError(f"teacher: x0 and x1 must be floating point, got {x0.dtype} and {x1.dtype}")
    for name, value in (("x0", x0), ("x1", x1)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"teacher: {name} has values that are not finite")
    return x0, x1


def _split(samples: int | None, validation: int | None, count: int) -> tuple[int, int]:
    held = max(1, count // 4) if validation is None else validation
    train = count - held if samples is None else samples
    if min(train, held) < 1 or train + held != count:
        raise ValueError(
            f"samples + validation is {train} + {held}, {count} pairs are given; both must be positive and add up to it"
        )
    return train, held


def _check_rows(value: Any, count: int, where: str) -> None:
    """Every tensor of a condition has one row for each pair."""
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != count:
            raise ValueError(
                f"{where} has shape {list(value.shape)}, expected {count} rows, one for each pair (training and validation); "
                "what all share belongs into shared"
            )
    elif isinstance(value, dict):
        for key, child in value.items():
            _check_rows(child, count, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, child in enumerate(value):
            _check_rows(child, count, f"{where}[{i}]")


def _take(value: Any, index: Tensor) -> Any:
    """The rows of every tensor inside nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, dict):
        return {key: _take(child, index) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_take(child, index) for child in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value
