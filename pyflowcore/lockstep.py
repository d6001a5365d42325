"""Adaptive solves of small samples on a CPU by the loop of ``adaptive_loop``, without its costs.

Samples that begin together with a method whose steps always take the same stages wait for the same stage all the time, each
at a time and with a step size of its own. So the operator handles them as lanes of a vector, in memory that is checked and
laid out once (csrc/cpu/lockstep.hpp). The bits are those of the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library
from .adaptive_loop import Found, Problem, evaluator
from .ops import _plain_adaptive
from .ops.adaptive import TABLES

__all__ = ["run_lockstep", "runs_in_lockstep"]

_begin = torch.ops.pyflowcore.lockstep_begin.default
_lockstep_ = torch.ops.pyflowcore.lockstep_.default
_end = torch.ops.pyflowcore.lockstep_end.default
_ELEMENTS = 32  # csrc/cpu/lockstep.hpp: larger samples fill vectors of their own
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def runs_in_lockstep(problem: Problem) -> bool:
    """Whether :func:`run_lockstep` serves the problem."""
    x0, field = problem.x0, problem.field
    return (
        x0.device.type == "cpu"
        and _library.cpu.live
        and not (problem.record or problem.compact or problem.rounds is not None)
        and field.dtype in (None, x0.dtype)
        and field.time_dtype in (None, *_DTYPES)
        and 0 < x0.numel() <= _ELEMENTS * len(x0)
        and float(TABLES[problem.method][_plain_adaptive.FACTS, _plain_adaptive.EXTRA]) == 0.0
        and problem.times.device.type == "cpu"
    )


def run_lockstep(problem: Problem) -> Found:
    """The solve of a problem of which :func:`runs_in_lockstep` holds."""
    x0, times, field = problem.x0, problem.times, problem.field
    parts = (problem.rtol, problem.atol)
    if any(isinstance(one, Tensor) and one.dim() > 0 for one in parts):
        at = [torch.as_tensor(one, dtype=torch.float64, device="cpu").expand(len(x0)) for one in parts]
        tolerances = torch.stack(at)
    else:
        tolerances = torch.tensor([[float(one)] for one in parts], dtype=torch.float64)
    memory = _begin(
        x0, times, TABLES[problem.method], tolerances, problem.first_step, problem.norm_elements, problem.max_nfe,
        float(field.sign),
    )  # fmt: skip
    y = x0.clone(memory_format=torch.contiguous_format)
    t_dtype = torch.float64 if problem.maps_times() else field.time_dtype or x0.dtype
    t = torch.full((len(x0),), float(times[0]), dtype=t_dtype)
    evaluate, cond = evaluator(problem), problem.cond
    rounds, running = 0, len(x0)
    while running:
        running = _lockstep_(evaluate(y, t, cond), y, t, memory)
        rounds += 1
    x, reached, counts = _end(memory, y)
    return Found(x, reached, counts.unbind(), rounds)
