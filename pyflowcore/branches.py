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
from .guidance import CFG, Scale, as_scale, seen
from .plans import Plan

__all__ = ["batches", "evaluator", "guided", "scales_of"]


def guided(guidance: CFG | None, cond: dict[str, Any], uncond: dict[str, Any]) -> bool:
    """Whether there are two branches to guide between."""
    if guidance is None:
        return False
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
    how: str, cond: dict[str, Any], uncond: dict[str, Any], guided: bool, batch: int | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(the doubled condition, None) or (None, the unconditional one for a call of its own)."""
    if not guided:
        return None, None
    filled = {key: conditions.fill(cond[key], uncond[key], f"[{key!r}]") for key in cond}
    if how == "calls" or batch is None:
        return None, filled
    try:
        return {k: conditions.double(cond[k], filled[k], batch, f"[{k!r}]") for k in cond}, None
    except conditions.CannotDouble as reason:
        warnings.warn(
            f"the two branches are evaluated by two calls, not as one doubled batch: {reason}; Sampler(..., "
            "branches='calls') asks for that",
            PyflowcoreWarning,
            stacklevel=4,
        )
        return None, filled


def scales_of(
    plan: Plan, guidance: CFG | None, state: Tensor, guided: bool, override: Scale | None, enable_grad: bool
) -> tuple[list[int], Tensor | None]:
    """For each row the number of branches, and the guidance scales [rows, 1 or B]."""
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
        branches, scales = guidance.rows(
            [row.t if row.evaluates else None for row in rows], state.shape[0], override
        )
        if max(branches) == 1:
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


def evaluator(
    field: Field,
    doubled: dict[str, Any] | None,
    cond: dict[str, Any],
    split: dict[str, Any] | None,
    shared: dict[str, Any],
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """How a step is evaluated: (the output, the unconditional one if it is a tensor of its own)."""
    net = field.net
    single = {**cond, **shared}
    if doubled is not None:
        both = {**doubled, **shared}
        return lambda step: (net(step.x, step.time, **(both if step.branches == 2 else single)), None)
    if split is not None:
        null = {**split, **shared}
        watched = not torch.compiler.is_compiling()  # its graph has no memory yet

        def by_calls(step: Any) -> tuple[Tensor, Tensor | None]:
            out = net(step.x, step.time, **single)
            if step.branches == 1:
                return out, None
            other = net(step.x, step.time, **null)
            if (
                watched
                and isinstance(out, Tensor)
                and isinstance(other, Tensor)
                and out.numel()
                and out.data_ptr() == other.data_ptr()
            ):
                raise ValueError(
                    "the field returned the same memory for both branches, so the second overwrote the first; return new "
                    "tensors, or use branches='batch'"
                )
            return out, other

        return by_calls
    return lambda step: (net(step.x, step.time, **single), None)
