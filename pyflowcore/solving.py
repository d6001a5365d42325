"""solve: an adaptive solve of dx/dt = field(x, t) that gives every sample step sizes of its own."""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._library import PyflowcoreWarning
from .adaptive_loop import Problem, run
from .field import Field, as_field
from .ops import _plain_adaptive
from .ops.adaptive import METHODS
from .scales import seen

__all__ = ["Solution", "Status", "solve"]


class Status(enum.IntEnum):
    """How a sample's solve ended."""

    SUCCESS = _plain_adaptive.SUCCESS
    """It reached the last time."""
    BUDGET = _plain_adaptive.BUDGET
    """The next step could have taken more evaluations than ``max_nfe``."""
    UNDERFLOW = _plain_adaptive.UNDERFLOW
    """The tolerance asked for a step below 16 units in the last place of t."""
    NON_FINITE = _plain_adaptive.NON_FINITE
    """The field's values, or the start, are not finite, however small the step."""
    UNFINISHED = _plain_adaptive.UNFINISHED
    """``rounds`` was too small for it."""


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found.

    Attributes:
        x: [len(t), B, ...] the states at t, the state's dtype. Where a sample did not get to a time, the last state that it
            got to stands there: ``reached`` says when that was.
        t: [len(t)] float64, on the CPU unless it was given elsewhere.
        status: [B] int64, numbers of :class:`Status`.
        reached: [B] float64, the time that each sample got to; the last of t where it succeeded.
        nfe: [B] int64, evaluations of the field that the sample's steps took, those of its first step's size included.
        accepted, rejected: [B] int64, steps.
        rounds: evaluations of the field on the batch.
        engine: what ran.
    """

    x: Tensor
    t: Tensor
    status: Tensor
    reached: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    rounds: int
    engine: str

    @property
    def success(self) -> Tensor:
        """[B] bool: whether each sample reached the last time."""
        return self.status == Status.SUCCESS


def solve(
    field: Field | Callable[..., Tensor],
    x0: Tensor,
    t: Tensor | Sequence[float],
    method: str = "dopri5",
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    cond: dict[str, Any] | None = None,
    *,
    max_nfe: int = 100_000,
    first_step: float | None = None,
    compact: bool = False,
    rounds: int | None = None,
    norm_elements: int | None = None,
) -> Solution:
    """Integrates dx/dt = field(x, t) with error control, each sample with step sizes, status and counts of its own."""
    made = as_field(field)
    _check_field(made)
    if not isinstance(x0, Tensor):
        raise TypeError(f"x0 must be a tensor, got {type(x0).__name__}")
    if x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x0 must be float32 or float64, got {x0.dtype}")
    if x0.dim() == 0:
        raise ValueError("x0 must have a batch dimension, got a scalar")
    if method not in METHODS:
        raise ValueError(f"method: unknown name {method!r}, allowed are {', '.join(METHODS)}")
    times = _times(t)
    if made.time_shape == "scalar" and len(x0) > 1:
        raise ValueError(
            "field takes one time for the whole batch (time_shape='scalar'), but every sample has its own: use a network of "
            "times [B], or solve one sample at a time"
        )
    tolerances = [_tolerance(value, name, len(x0)) for value, name in ((rtol, "rtol"), (atol, "atol"))]
    if x0.dtype == torch.float32 and seen(tolerances[0]) and bool((tolerances[0] < 1e-6).any()):
        warnings.warn(
            f"rtol is {float(tolerances[0].min()):g}, below what float32 resolves (1e-6): the steps will follow rounding "
            "errors; give x0 in float64",
            PyflowcoreWarning,
            stacklevel=2,
        )
    if isinstance(max_nfe, bool) or not isinstance(max_nfe, int) or max_nfe < 1:
        raise ValueError(f"max_nfe must be a positive integer, got {max_nfe!r}")
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
        raise ValueError(f"rounds must be a positive integer or None, got {rounds!r}")
    if first_step is not None and not (math.isfinite(first_step) and first_step > 0):
        raise ValueError(f"first_step must be a positive number, got {first_step!r}")
    if compact and rounds is not None:
        raise ValueError("compact=True needs to know which samples are finished, which rounds=N never asks")
    if cond is not None and not isinstance(cond, dict):
        raise TypeError(f"cond must be a dict of the field's keyword arguments, got {type(cond).__name__}")
    sample = x0[0].numel() if len(x0) else 0
    if norm_elements is not None and not 1 <= norm_elements <= sample:
        raise ValueError(f"norm_elements must lie in 1..{sample}, got {norm_elements}")
    problem = Problem(
        made, x0, times, method, tolerances[0], tolerances[1], cond or {}, max_nfe, first_step or 0.0, compact, rounds,
        sample if norm_elements is None else norm_elements,
    )  # fmt: skip
    with torch.no_grad():
        found = run(problem)
    return Solution(t=times, **found)


def _check_field(field: Field) -> None:
    if field.prediction != "velocity":
        name = field.prediction if isinstance(field.prediction, str) else field.prediction.name
        raise ValueError(
            f"field predicts {name!r}, and a solve integrates the velocity: convert it in the network, or use a plan "
            "(pfc.Sampler), which converts every prediction"
        )
    if field.time_dtype in (torch.int32, torch.int64) and not field.round_time:
        raise ValueError(
            f"field's time_dtype is {field.time_dtype}, but the times of adaptive steps are no integers: ask for "
            "round_time=True"
        )


def _times(t: Tensor | Sequence[float]) -> Tensor:
    try:
        if isinstance(t, Tensor):
            times = t.detach().double()
        else:
            times = torch.tensor([float(one) for one in t], dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"t must be a 1-D tensor or a sequence of numbers, got {t!r}") from None
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(f"t must be 1-D with at least two times, got shape {list(times.shape)}")
    if seen(times):
        gaps = times.diff()
        if not bool(torch.isfinite(times).all()) or not bool((gaps > 0).all() or (gaps < 0).all()):
            raise ValueError(f"t must be finite and increase, or decrease, throughout, got {times.tolist()}")
    return times


def _tolerance(value: float | Tensor, name: str, batch: int) -> Tensor:
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name} must be a number or a tensor [B], got {type(value).__name__}")
    made = torch.as_tensor(value, dtype=torch.float64)
    if made.dim() > 1 or (made.dim() == 1 and len(made) != batch):
        raise ValueError(f"{name} must be a number or have shape [{batch}], got {list(made.shape)}")
    least = made >= 0 if name == "rtol" else made > 0
    if seen(made) and not bool((least & torch.isfinite(made)).all()):
        raise ValueError(
            f"{name} must be {'at least 0' if name == 'rtol' else 'positive'} and finite, got {value!r}"
        )
    return made
