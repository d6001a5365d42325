"""The branches of a guided evaluation: which rows need them, with which scales, and how the field is called for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import conditions
from ._library import PyflowcoreWarning
from .field import Field
from .guidance import CFG
from .plans import Plan
from .prepare.field import PreparedField
from .prepare.packing import Evaluate
from .scales import Scale, as_scale, seen

__all__ = ["batches", "conditions_of", "evaluator", "guided", "scales_of", "without_branch"]

# The kernel's kMaxBranches, less the unconditional one.
MOST_CONDITIONS = 7


def conditions_of(cond: Any) -> list[dict[str, Any]]:
    """One condition as a dict, several as a list of them."""
    if cond is None:
        return [{}]
    if isinstance(cond, dict):
        return [cond]
    if not isinstance(cond, (list, tuple)) or not cond or not all(isinstance(one, dict) for one in cond):
        raise TypeError(
            f"cond must be a dict of the field's keyword arguments, or a list of them, got {type(cond).__name__}"
        )
    if len(cond) > MOST_CONDITIONS:
        raise ValueError(f"cond has {len(cond)} conditions, at most {MOST_CONDITIONS} are allowed")
    return list(cond)


def guided(guidance: CFG | None, several: list[dict[str, Any]], uncond: dict[str, Any]) -> bool:
    """Whether there are branches to guide between."""
    cond = several[0]
    if guidance is None:
        if len(several) > 1:
            raise ValueError(
                f"cond has {len(several)} conditions, and the sampler has no guidance to weigh them"
            )
        return False
    for i, other in enumerate(several[1:], start=1):
        conditions.check_keys(cond, other, "cond[0]", f"cond[{i}]")
    if guidance.weak is not None:
        if uncond:
            conditions.check_keys(cond, uncond)
        return True
    if not cond and not uncond:
        warnings.warn(
            "guidance was asked for, but neither cond nor uncond: both branches are one evaluation, so it has no effect",
            PyflowcoreWarning,
            stacklevel=4,
        )
        return False
    if cond and not uncond:
        raise ValueError(
            "uncond is missing: guidance needs the unconditional branch's arguments beside cond's"
        )
    conditions.check_keys(cond, uncond)
    return True


def batches(
    how: str,
    several: list[dict[str, Any]],
    uncond: dict[str, Any],
    guided: bool,
    batch: int | None,
    weak: Field | None,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(the stacked conditions, None) or (None, the unconditional one for a call of its own)."""
    if not guided:
        return None, None
    cond = several[0]
    if weak is not None:
        return None, uncond or cond
    filled = {key: conditions.fill(cond[key], uncond[key], f"[{key!r}]") for key in cond}
    if how == "calls" or batch is None:
        return None, filled
    try:
        return {
            k: conditions.stack([*(one[k] for one in several), filled[k]], batch, f"[{k!r}]") for k in cond
        }, None
    except conditions.CannotDouble as reason:
        number = {1: "two"}.get(len(several), str(len(several) + 1))
        warnings.warn(
            f"the {number} branches are evaluated by {number} calls, not as one stacked batch: {reason}; Sampler(..., "
            "branches='calls') asks for that",
            PyflowcoreWarning,
            stacklevel=4,
        )
        return None, filled


def scales_of(
    plan: Plan, guidance: CFG | None, state: Tensor, guided: bool, override: Scale | None, enable_grad: bool,
    several: int | None = None,
) -> tuple[list[int], Tensor | None]:  # fmt: skip
    """For each row the number of branches (0 where its velocity is zero), and the guidance scales [rows, 1 or B] or, of
    several conditions, [rows, conditions, 1 or B]. Without ``several`` the guidance's weights say how many there are."""
    rows = plan.facts
    if override is not None:
        if guidance is None:
            raise ValueError(
                "guidance_scale is given, but the sampler has no guidance: Sampler(plan, guidance=pfc.CFG(...))"
            )
        if not callable(override) and not (guided and isinstance(override, (int, float))):
            as_scale(override, state.shape[0])
    if not guided or guidance is None:
        return [1] * len(rows), None
    with torch.set_grad_enabled(enable_grad):
        if guidance.zero_until > 0.0 and plan.prediction != "velocity":
            raise ValueError(
                f"zero_until: the plan's field predicts {plan.prediction!r}; only a velocity can be taken to be zero"
            )
        if guidance.zero_until > 0.0 and plan.along != plan.path:
            raise ValueError(
                f"zero_until: the plan takes a field of the {plan.path.name} path along the {plan.along.name} path; a "
                "velocity of zero on the one is none on the other"
            )
        if several is None:
            several = 1 if guidance.weights is None else len(guidance.weights)
        branches, scales = guidance.rows(
            [row.t if row.evaluates else None for row in rows], state.shape[0], override, several
        )
        if max(branches) < 2:
            return branches, None
        most = torch.finfo(state.dtype).max
        if isinstance(scales, Tensor):
            if seen(scales) and bool((scales.detach().abs() > most).any()):
                raise ValueError(f"guidance scale must be finite in {state.dtype}, the largest is {most:.3g}")
            return branches, scales.to(device=state.device, dtype=state.dtype).contiguous()
        if abs(scales) > most:
            raise ValueError(
                f"guidance scale must be finite in {state.dtype}, got {scales}; the largest is {most:.3g}"
            )
        return branches, state.new_full((len(rows), 1), scales)


def without_branch(plan: Plan, counts: list[int]) -> tuple[int, ...]:
    """The rows whose evaluation is not made, because the velocity is taken to be zero there."""
    return tuple(
        i for i, (row, n) in enumerate(zip(plan.facts, counts, strict=True)) if row.evaluates and n == 0
    )


def evaluator(
    field: Field,
    stacked: dict[str, Any] | None,
    several: list[dict[str, Any]],
    split: dict[str, Any] | None,
    shared: dict[str, Any],
    other: Field,
    other_times: list[Tensor] | None,
    row_times: Callable[[], Tensor] | None = None,
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """How a step is evaluated: (the output, the unconditional one if it is a tensor of its own).

    ``other`` evaluates ``split``: the field itself, or a weaker one at times of its own, row by row. ``row_times`` gives the
    network's time of every row of the plan, [rows], to prepared fields, unless a gradient is wanted.
    """
    net = field.net
    single = {**several[0], **shared}
    if split is None and row_times is not None and isinstance(field, PreparedField):
        if stacked is None:
            return _prepared(field, single, row_times(), None)
        every = {**stacked, **shared}
        return _prepared(field, every, row_times(), conditions.batch_of(every))
    if stacked is not None:
        every = {**stacked, **shared}
        return lambda step: (net(step.x, step.time, **(every if step.branches > 1 else single)), None)
    if split is None:
        return lambda step: (net(step.x, step.time, **single), None)
    null = {**split, **shared}
    watched = not torch.compiler.is_compiling()  # its graph has no memory yet
    if other_times is None and len(several) == 1:

        def by_two_calls(step: Any) -> tuple[Tensor, Tensor | None]:
            out = net(step.x, step.time, **single)
            if step.branches == 1:
                return out, None
            u = net(step.x, step.time, **null)
            if watched:
                _check_apart(out, u)
            return out, u

        return by_two_calls

    conditional = [{**cond, **shared} for cond in several]

    def by_calls(step: Any) -> tuple[Tensor, Tensor | None]:
        if step.branches == 1:
            return net(step.x, step.time, **single), None
        outs = [net(step.x, step.time, **cond) for cond in conditional]
        if other_times is None:
            u = net(step.x, step.time, **null)
        else:
            x = step.x if other.dtype is None else step.x.to(other.dtype)
            u = other.net(x, other_times[step.row], **null)
            if isinstance(u, Tensor) and isinstance(outs[0], Tensor):
                u = (u if other.sign == field.sign else -u).to(outs[0].dtype)
        for i, out in enumerate(outs if watched else ()):
            for later in (*outs[i + 1 :], u):
                _check_apart(out, later)
        return (outs[0] if len(outs) == 1 else torch.cat(outs)), u

    return by_calls


def _prepared(
    field: PreparedField, cond: dict[str, Any], times: Tensor, batch: int | None
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Rows of one trajectory. ``batch``: samples in all branches, where rows may have fewer; None: all rows have as many."""
    evaluate: Evaluate | None = None

    def by_row(step: Any) -> tuple[Tensor, Tensor | None]:
        nonlocal evaluate
        if evaluate is None:
            evaluate = field.trajectory(times, cond, len(step.x) if batch is None else batch)
        return evaluate(step.x, step.row), None

    return by_row


def _check_apart(out: object, later: object) -> None:
    """No branch may lie where another does: the later call would have overwritten it."""
    if (
        isinstance(out, Tensor)
        and isinstance(later, Tensor)
        and out.numel()
        and out.data_ptr() == later.data_ptr()
    ):
        raise ValueError(
            "the field returned the same memory for both branches, so the second overwrote the first; return new tensors, "
            "or use branches='batch'"
        )
