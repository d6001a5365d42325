"""Bespoke non-stationary solvers (Shaul et al. 2024, "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow
Models"): the family y_{i+1} = a_i x_0 + sum_{j <= i} b_ij f_j, f_j the field at (y_j, t_j), which holds every explicit solver.

A plan keeps y_i as its state, so that callbacks, trajectories and edits see it. Where the a are not 0, x_0 is
(y_i - sum_j b_{i-1,j} f_j) / a_{i-1}, so the row is y_{i+1} = A_i y_i + sum_j B_ij f_j with A_i = a_i / a_{i-1} and
B_ij = b_ij - A_i b_{i-1,j}.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import _core
from .plans import Plan

__all__ = ["Coefficients", "to_plan", "unroll"]

Float = npt.NDArray[np.float64]
_R = _core.record


class Coefficients(NamedTuple):
    """Of n evaluations: times [n + 1] (the last is the end), a [n], b [n, n] lower triangular. Arrays or tensors, float64."""

    times: Tensor
    a: Tensor
    b: Tensor


def unroll(plan: Plan) -> Coefficients:
    """Any deterministic plan whose evaluation times increase, exactly in this form; its outputs f_j are the field's own.

    Raises:
        ValueError: the plan draws noise, scales its inputs, evaluates at times that do not increase strictly (Heun has two
            evaluations at each grid point), or forgets x_0 before its last row.
    """
    if plan.draws:
        raise ValueError(f"init: {plan.solver!r} draws noise, and a learned plan has none")
    n = plan.nfe
    rows = plan.rows
    evaluations = [row for row in rows if row.evaluates]
    times = [row.t for row in evaluations] + [plan.times[-1]]
    for t, after in itertools.pairwise(times):
        if not after > t:
            raise ValueError(
                f"init: {plan.solver!r} evaluates the field at t = {t:g} and then at t = {after:g}; a learned plan's times "
                "increase strictly, as those of midpoint, bosh3, ab1 to ab4, dpmpp_1s to dpmpp_3m, unipc, deis and res do"
            )
    # Every tensor of the solve as its coefficients of (x_0, f_0, ..., f_{n-1}).
    basis = np.eye(n + 1)
    x = y = basis[0]
    slots: dict[int, Float] = {}
    points: list[Float] = []
    for row in rows:
        d = np.zeros(n + 1)
        if row.evaluates:
            points.append(y)
            d = row.p * y + row.q * basis[len(points)]
        # a - 1 is the better known near 1.
        scaled = x + row.a_minus_1 * x if abs(row.a_minus_1) < 0.5 else row.a * x
        x = scaled + row.b_new * d + sum(term.coefficient * slots[term.slot] for term in row.b)
        y = row.c * x + row.e_new * d + sum(term.coefficient * slots[term.slot] for term in row.e)
        if row.store >= 0:
            slots[row.store] = d
        if row.in_scale != 1.0:
            raise ValueError(f"init: {plan.solver!r} scales the field's input, which a learned plan does not")
    if not np.array_equal(points[0], basis[0]):
        raise ValueError(f"init: {plan.solver!r} changes the state before its first evaluation")
    points.append(x)
    for i, point in enumerate(points[1:-1], start=1):
        if point[0] == 0.0:
            raise ValueError(
                f"init: {plan.solver!r} forgets x0 by its evaluation {i}; a learned plan starts from it"
            )
    lines = torch.from_numpy(np.stack(points[1:]))
    return Coefficients(torch.tensor(times, dtype=torch.float64), lines[:, 0].clone(), lines[:, 1:].clone())


def increments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A [n] and B [n, n] of the module's docstring; differentiable."""
    factor = torch.cat([a[:1], a[1:] / a[:-1]])
    return factor, torch.cat([b[:1], b[1:] - factor[1:, None] * b[:-1]])


def table(a: Tensor, b: Tensor) -> Tensor:
    """The rows' table [n, 56] as a differentiable function of the coefficients. Its times are left 0."""
    n = a.shape[0]
    factor, own = increments(a, b)
    constant = torch.zeros(n, _R["width"], dtype=torch.float64)
    constant[:, [_R["evaluates"], _R["in_scale"], _R["q"], _R["c"]]] = 1.0
    constant[:, _R["store"]] = torch.tensor([*range(n - 1), -1], dtype=torch.float64)
    constant[:, _R["draw"] : _R["draw"] + _R["max_draws"]] = -1.0
    rows, older = torch.tril_indices(n, n, -1)
    place = torch.cat(
        [torch.arange(n) * _R["width"] + _R[name] for name in ("a", "a_minus_1", "b_new")]
        + [rows * _R["width"] + _R["b"] + older]
    )
    values = torch.cat([factor, factor - 1.0, own.diagonal(), own[rows, older]])
    return constant.reshape(-1).index_copy(0, place, values).reshape(n, -1)


def to_plan(found: Coefficients, like: Plan) -> Plan:
    """The plan of these coefficients, for the field (path and prediction) that ``like`` is for; its solver is "bns"."""
    times = found.times.tolist()
    factor, own = (tensor.tolist() for tensor in increments(found.a, found.b))
    n = len(factor)
    rows = [
        {
            "t": times[i], "step": i, "completes_step": True, "a": factor[i], "a_minus_1": factor[i] - 1.0,
            "b_new": own[i][i], "b": {str(j): own[i][j] for j in range(i)}, "store": i if i < n - 1 else -1,
        }
        for i in range(n)
    ]  # fmt: skip
    return Plan.from_dict(
        {
            **like.to_dict(), **like.functions(), "solver": "bns", "working": like.prediction, "times": times, "slots": n - 1,
            "rows": rows,
        }
    )  # fmt: skip
