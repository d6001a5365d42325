"""solve: an adaptive solve of dx/dt = field(x, t) that gives every sample step sizes of its own."""

from __future__ import annotations

import enum
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import conditions
from ._library import PyflowcoreWarning
from .adaptive_loop import Problem, run, run_fused, states, why_not_fused
from .field import Field, as_field
from .lockstep import run_lockstep, runs_in_lockstep
from .ops import _plain_adaptive
from .ops.adaptive import METHODS
from .replay import replay
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
        rounds: evaluations of the field on the batch; 0 where the engine evaluates it itself.
        engine: what ran: "one call" for a fused field, or "batched loop: " and why.
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
    enable_grad: bool = False,
    norm_elements: int | None = None,
) -> Solution:
    """Integrates dx/dt = field(x, t) from t[0] through every time of t, with error control for each sample by itself.

    A sample's steps depend on nothing but its own values: it takes the same ones alone and in any batch (to the bit, for
    fields that are: fused ones, and those that do not mix samples), and one that fails, or is slow, changes no other. The step
    control is that of ``docs/adaptive.md``.

    Args:
        field: a :class:`Field` that predicts the velocity, on any path, or a callable ``field(x, t, **cond) -> Tensor``: x
            [B, ...] and t [B] in the state's dtype (or the field's). A fused field on a CPU is solved in one call.
        x0: [B, ...] the states at t[0], float32 or float64.
        t: at least two times, increasing or decreasing; taken in float64.
        method: "bosh3" (order 3), "dopri5" or "tsit5" (5), "dop853" (8).
        rtol, atol: tolerances, numbers or [B]: a step is taken if the root mean square over a sample's elements of
            error / (atol + rtol max(|x|, |x'|)) is at most 1. atol is positive.
        cond: keyword arguments of the field.
        max_nfe: evaluations after which a sample returns where it got to.
        first_step: the size of the first attempt. Default: from two evaluations of the field.
        compact: the field is evaluated on the unfinished samples only: the batch shrinks, so everything that belongs to a
            sample must come through ``cond``, in tensors that begin with B.
        rounds: evaluate the field exactly this often and look at nothing, so that the solve can be captured in a graph;
            samples that need more have the status UNFINISHED. Give t as a float64 tensor on x0's device then, and
            tolerances as numbers or on that device.
        enable_grad: x has a gradient, in x0, in the tensors of cond and in the field's parameters: the accepted steps are run
            again with their lengths held constant, in whatever grad mode. x is that run's: it may differ in the last bits from
            what the same solve gives without. Memory: one state for each step.
        norm_elements: so many elements of the flattened sample count in the error; the rest come along. Default: all.

    Returns:
        :class:`Solution`.

    Raises:
        TypeError, ValueError: naming the argument.

    Warns:
        PyflowcoreWarning: for rtol below 1e-6 with a float32 state.
    """
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
    least = tolerances[0]
    if isinstance(least, Tensor):
        least = float(least.min()) if seen(least) and least.numel() else 1.0
    if x0.dtype == torch.float32 and least < 1e-6:
        warnings.warn(
            f"rtol is {least:g}, below what float32 resolves (1e-6): the steps will follow rounding "
            "errors; give x0 in float64",
            PyflowcoreWarning,
            stacklevel=2,
        )
    if isinstance(max_nfe, bool) or not isinstance(max_nfe, int) or not 1 <= max_nfe < 2**62:
        raise ValueError(f"max_nfe must be a positive integer below 2**62, got {max_nfe!r}")
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
        raise ValueError(f"rounds must be a positive integer or None, got {rounds!r}")
    if first_step is not None:
        if not _is_number(first_step):
            raise TypeError(f"first_step must be a number or None, got {type(first_step).__name__}")
        if not (math.isfinite(first_step) and first_step > 0):
            raise ValueError(f"first_step must be a positive number, got {first_step!r}")
    if enable_grad and rounds is not None:
        raise ValueError("enable_grad=True needs to know the accepted steps, which rounds=N never asks")
    if compact and rounds is not None:
        raise ValueError("compact=True needs to know which samples are finished, which rounds=N never asks")
    if cond is not None and not isinstance(cond, dict):
        raise TypeError(f"cond must be a dict of the field's keyword arguments, got {type(cond).__name__}")
    sample = x0[0].numel() if len(x0) else 0
    if norm_elements is not None and (isinstance(norm_elements, bool) or not isinstance(norm_elements, int)):
        raise TypeError(f"norm_elements must be an integer or None, got {norm_elements!r}")
    if norm_elements is not None and not 1 <= norm_elements <= sample:
        raise ValueError(f"norm_elements must lie in 1..{sample}, got {norm_elements}")
    problem = Problem(
        made, x0, times, method, tolerances[0], tolerances[1], cond or {}, max_nfe,
        0.0 if first_step is None else float(first_step), compact, rounds,
        sample if norm_elements is None else norm_elements, record=enable_grad,
    )  # fmt: skip
    why = why_not_fused(problem)
    engine = f"batched loop: {why}" if why else "one call"
    if not why or runs_in_lockstep(problem):
        with torch.no_grad():
            found = run_lockstep(problem) if why else run_fused(problem)
        status, nfe, accepted, rejected = found.counts
        return Solution(found.x, times, status, found.reached, nfe, accepted, rejected, found.rounds, engine)
    if enable_grad:
        # Whatever the caller's mode is; tensors made in inference mode have no gradient, their copies have.
        with torch.inference_mode(False), torch.enable_grad():
            problem = _ordinary(problem)
            with torch.no_grad():
                buffers, done = run(problem)
            x = replay(problem, buffers)
    else:
        with torch.no_grad():
            buffers, done = run(problem)
        x = states(buffers.rows, buffers.x, buffers.column("row"))
    counts = {name: buffers.column(name) for name in ("status", "nfe", "accepted", "rejected")}
    return Solution(x=x, t=times, reached=buffers.column("t"), rounds=done, engine=engine, **counts)


def _ordinary(problem: Problem) -> Problem:
    """The problem without tensors that were made in inference mode."""

    def copy(value: Tensor) -> Tensor:
        return value.clone() if value.is_inference() else value

    def of(value: float | Tensor) -> float | Tensor:
        return copy(value) if isinstance(value, Tensor) else value

    return replace(
        problem, x0=copy(problem.x0), times=copy(problem.times), rtol=of(problem.rtol), atol=of(problem.atol),
        cond={name: conditions.map_tensors(value, copy) for name, value in problem.cond.items()},
    )  # fmt: skip


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
    if not isinstance(t, Tensor):
        try:
            numbers = [float(one) for one in t]
        except (TypeError, ValueError):
            raise TypeError(f"t must be a 1-D tensor or a sequence of numbers, got {t!r}") from None
        if len(numbers) >= 2:
            _check_times(numbers)
        t = torch.tensor(numbers, dtype=torch.float64)
        times = t
    else:
        times = t.detach().double()
        if times.dim() == 1 and len(times) >= 2 and seen(times):
            _check_times(times.tolist())
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(f"t must be 1-D with at least two times, got shape {list(times.shape)}")
    return times


def _check_times(numbers: list[float]) -> None:
    pairs = list(itertools.pairwise(numbers))
    one_way = all(a < b for a, b in pairs) or all(a > b for a, b in pairs)
    if not one_way or not all(map(math.isfinite, numbers)):
        raise ValueError(f"t must be finite and increase, or decrease, throughout, got {numbers}")


def _is_number(value: object) -> bool:
    """NumPy's numbers are some."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _tolerance(value: float | Tensor, name: str, batch: int) -> float | Tensor:
    made = value.detach().double() if isinstance(value, Tensor) else value
    if isinstance(made, Tensor):
        if made.dim() > 1 or (made.dim() == 1 and len(made) != batch):
            raise ValueError(f"{name} must be a number or have shape [{batch}], got {list(made.shape)}")
        least = made >= 0 if name == "rtol" else made > 0
        fine = not seen(made) or bool((least & torch.isfinite(made)).all())
    else:
        if not _is_number(made):
            raise TypeError(f"{name} must be a number or a tensor [B], got {type(value).__name__}")
        made = float(made)
        fine = math.isfinite(made) and (made >= 0 if name == "rtol" else made > 0)
    if not fine:
        raise ValueError(
            f"{name} must be {'at least 0' if name == 'rtol' else 'positive'} and finite, got {value!r}"
        )
    return made
