"""What guidance by weights keeps for one trajectory: its rules for every row, the momentum, and the kernel's memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .guidance import CFG
from .ops import _plain_guide
from .ops._plain_guide import RULE
from .plans import Plan
from .program import Program

__all__ = ["Guide", "guide_for"]

# Looked up once: each attribute on the way costs a tenth of the call.
_guide_ = torch.ops.pyflowcore.guide_.default


class Guide:
    """The weights of a trajectory's rows; nothing is allocated per step, nothing synchronises.

    Args:
        rules: float64 [rows, 7]: :data:`RULE`; and the same as lists.
        guidance: the scales, as ``combine_`` takes them.
        state: for shapes, dtype and device.
        branches: the most that a row has.
    """

    def __init__(
        self, rules: tuple[Tensor, list[list[float]]], guidance: Tensor, state: Tensor, branches: int, momentum: bool
    ) -> None:  # fmt: skip
        (self._rules, self._lines), self._guidance = rules, guidance
        self._points = [_plain_guide.uses_point(line) for line in self._lines]
        self.uses_point = any(self._points)
        batch = state.shape[0]
        weights = state.new_zeros((_plain_guide.rows(branches, self.uses_point), batch))
        self._mix = weights[: _plain_guide.rows(branches, False)], weights
        self.m = torch.zeros_like(state, memory_format=torch.contiguous_format) if momentum else None
        sample = state[0].numel() if batch else 0
        size = _plain_guide.scratch_size(batch, sample, branches, self.uses_point)
        self._scratch = state.new_empty(size, dtype=torch.float64)

    def reset(self) -> None:
        """Forgets the momentum, in place: what a replayed trajectory begins with."""
        if self.m is not None:
            self.m.zero_()

    def weigh(self, row: int, x: Tensor, y: Tensor | None, out: Tensor, out2: Tensor | None) -> Tensor:
        """The row's weights, valid until the next row's; moves the momentum on."""
        mix = self._mix[self._points[row]]
        _guide_(x, y, self.m, mix, self._scratch, out, out2, self._guidance, self._rules, row)
        return mix

    def guided(self, row: int, point: Tensor, outs: list[Tensor], keep: bool) -> Tensor:
        """The same in plain, differentiable PyTorch, up to the guided prediction; moves the momentum on if ``keep``."""
        batch = point.shape[0]
        branches = [part for out in outs for part in (out.split(batch) if batch else (out,))]
        if not point.numel():
            return branches[0]
        scales = _plain_guide.scales_of(self._guidance, row, len(branches) - 1)
        mix, m = _plain_guide.guide(self._lines[row], branches, scales, point, self.m, point.dtype)
        if keep:
            self.m = m
        return _plain_guide.mixed(mix, branches, point, m)


def guide_for(
    plan: Plan, guidance: CFG | None, sign: int, program: Program, counts: list[int], scales: Tensor | None,
    state: Tensor,
) -> Guide | None:  # fmt: skip
    """The guide of a trajectory; None where constants serve (classifier-free guidance, or one branch everywhere).

    Args:
        sign: the field's.
        counts: for each row of the program the number of branches; a guided row has more than one.
    """
    if guidance is None or scales is None or not guidance.by_sample:
        return None
    if guidance.momentum != 0.0 and max(counts) > 2:
        raise ValueError("momentum: a momentum is for one condition, there are several; use momentum=0")
    said = (
        bool(guidance.star), float(guidance.eta), float(guidance.norm or 0.0), float(guidance.momentum), float(guidance.phi),
    )  # fmt: skip
    guided = tuple(row.evaluates and n > 1 for row, n in zip(program.facts, counts, strict=True))
    rules = _rules(plan, sign, program.origin, guided, said)
    return Guide(rules, scales, state, max(counts), guidance.momentum != 0.0)


# Of plans and numbers alone, as program_of.
@torch.compiler.assume_constant_result
def _rules(
    plan: Plan, sign: int, origin: tuple[int, ...] | None, guided: tuple[bool, ...],
    said: tuple[bool, float, float, float, float],
) -> tuple[Tensor, list[list[float]]]:  # fmt: skip
    """The rules of a program's rows, as a tensor and as lists.

    Args:
        origin: the program's.
        guided: which rows evaluate several branches.
        said: star, eta, norm (0 for none), momentum, phi.
    """
    star, eta, norm, momentum, phi = said
    in_data = eta != 1.0 or norm != 0.0 or momentum != 0.0
    data = plan.data_coefficients() if in_data else []
    lines = []
    for i, several in enumerate(guided):
        p, q = 0.0, 1.0
        if in_data and several:
            at = i if origin is None else origin[i]
            row, (p, q) = plan.facts[at], data[at]
            q *= sign
            if not (math.isfinite(p) and math.isfinite(q)):
                raise ValueError(
                    f"eta, norm, momentum: at t = {row.t} the {plan.prediction} on {plan.path} does not determine the data, in "
                    "whose space they act; leave that time out with interval=..."
                )
            if momentum != 0.0 and q == 0.0:
                raise ValueError(
                    f"momentum: at t = {row.t} the point alone is the data, so a momentum of data has no part in the "
                    f"{plan.prediction}; leave that time out with interval=..."
                )
        lines.append([float(star), eta, norm, momentum, phi, p, q])
    return torch.tensor(lines, dtype=torch.float64).reshape(-1, len(RULE)), lines
