"""Guidance by weights in plain PyTorch, differentiable: for devices without compiled kernels, and for gradients.

The same order of operations as ``csrc/core/guide.hpp``, so that IEEE devices give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A line of rules: csrc/core/guide.hpp, rule_record.
RULE = ("zero", "eta", "norm", "beta", "phi", "p", "q")
CHUNK, LANES, STRIPES = 1024, 128, 64


def uses_point(rule: Sequence[float]) -> bool:
    """Whether the guided prediction has a part of the point."""
    return rule[RULE.index("eta")] != 1.0 and rule[RULE.index("p")] != 0.0


def rows(branches: int, point: bool) -> int:
    """How many weights a sample has: c_1's, one for each difference, u's, the point's."""
    return branches + 1 + point


def scratch_size(batch: int, sample: int, branches: int, point: bool) -> int:
    """Float64 numbers that guide_ needs to work with, for samples of ``sample`` elements."""
    vectors = branches + point
    return batch * -(-sample // CHUNK) * (vectors + vectors * (vectors + 1) // 2)


def _halve(values: Tensor) -> Tensor:
    """The sum along the last dimension, a power of two: each half added to the other, until one is left."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def _in_order(values: Tensor) -> Tensor:
    """The sum along the second to last dimension, from the first to the last."""
    total = torch.zeros_like(values[..., 0, :])
    for part in values.unbind(-2):
        total = total + part
    return total


def ordered_sum(values: Tensor) -> Tensor:
    """[B] from float64 [B, N], in the order of csrc/core/guide.hpp."""
    batch, sample = values.shape
    chunks = -(-sample // CHUNK)
    values = torch.nn.functional.pad(values, (0, chunks * CHUNK - sample))
    lanes = _in_order(values.reshape(batch, chunks, CHUNK // LANES, LANES)).reshape(batch, chunks, -1, 4)
    parts = _halve((lanes[..., 0] + lanes[..., 2]) + (lanes[..., 1] + lanes[..., 3]))
    parts = torch.nn.functional.pad(parts, (0, -chunks % STRIPES))
    return _halve(_in_order(parts.reshape(batch, -1, STRIPES)))


class _Products:
    """Inner products of vectors, and their sums, each taken once."""

    def __init__(self, vectors: Sequence[Tensor], momentum: bool) -> None:
        self.vectors, self.momentum = vectors, momentum
        self._found: dict[tuple[int, int], Tensor] = {}

    def sum(self, i: int) -> Tensor:
        if (-1, i) not in self._found:
            self._found[-1, i] = ordered_sum(self.vectors[i])
        return self._found[-1, i]

    def __call__(self, i: int, j: int) -> Tensor:
        i, j = min(i, j), max(i, j)
        if (i, j) not in self._found:
            self._found[i, j] = ordered_sum(self.vectors[i] * self.vectors[j])
        return self._found[i, j]

    def with_c(self, i: int) -> Tensor:
        return self(0, i) if self.momentum else self(0, i) + self(1, i)

    def variance(self, e: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        total = size = torch.zeros_like(self(0, 0))
        count = torch.full_like(total, self.vectors[0].shape[1])
        for i in range(len(self.vectors)):
            for j in range(len(self.vectors)):
                ee, square = e(i) * e(j), self(i, j)
                total = total + ee * (square - self.sum(i) * self.sum(j) / count)
                size = size + (ee * square).abs()
        return total, size


def _root(square: Tensor) -> Tensor:
    """The square root, 0 with gradient 0 where there is none."""
    positive = square > 0
    square = torch.where(positive, square, 1.0)
    root = square.sqrt()
    # torch's own is not always correctly rounded on a CPU. One Newton step with the exact residual square - root^2 (Dekker
    # 1971) is; where the split overflows, there is none.
    with torch.no_grad():
        large = 134217729.0 * root
        high = large - (large - root)
        low = root - high
        whole = root * root
        rest = (square - whole) - (((high * high - whole) + 2.0 * high * low) + low * low)
        step = torch.nan_to_num(rest / (2.0 * root), 0.0, 0.0, 0.0)
    return torch.where(positive, root + step, 0.0)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b where b > 0, else 0; no NaN reaches a gradient. Tensors both: torch may take the reciprocal of a number."""
    positive = b > 0
    return torch.where(positive, a / torch.where(positive, b, 1.0), 0.0)


def weights(
    rule: Sequence[float],
    vectors: Sequence[Tensor],
    scales: Sequence[Tensor],
    momentum: bool,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The weights [B] of c_1, of each difference, of u, and of the point (0 where it has none), float64; GuideWeights::solve.

    Args:
        rule: a line of rules.
        vectors: float64 [B, N]: u (c_1 with a momentum), the differences (or the momentum), the point if it is used.
        scales: float64 [B] or [1] for each condition.
        dtype: the state's: its largest number bounds what a weight can be.
    """
    largest = torch.finfo(dtype).max
    zero, eta, norm, _, phi, p, q = rule
    point, conditions = uses_point(rule), len(scales)
    y, of = len(vectors) - 1, _Products(vectors, momentum)
    nothing = torch.zeros_like(of(0, 0))
    amounts = [(scales[0] - 1.0 if j == 0 else scales[j]) + nothing for j in range(conditions)]
    asked = nothing
    for amount in amounts:
        asked = asked + amount.abs()
    left = nothing
    if zero:
        du, uu = of(1, 0), of(0, 0)
        fits = torch.clamp_min(asked, 1.0) * _over(du, uu).abs() <= largest
        # Masked before it is divided: no NaN reaches a gradient.
        left = -_over(torch.where(fits, du, 0.0), torch.where(fits, uu, 0.0))
    if eta != 1.0:
        cc = of(0, 0) if momentum else of.with_c(0) + of.with_c(1)
        data = q * q * cc
        if point:
            data = p * p * of(y, y) + (2.0 * p * q * of.with_c(y) + data)
    total, on_c, on_y = nothing, nothing, nothing
    weight = []
    for j, h in enumerate(amounts, start=1):
        if norm > 0.0:
            square = of(j, j)
            if not momentum:
                square = q * q * (square + left * (2.0 * of(j, 0) + left * of(0, 0)))
            length = _root(square)
            h = torch.where(length > norm, h * _over(torch.full_like(length, norm), length), h)
        if momentum:
            h = h / torch.full_like(h, q)
        if eta != 1.0:
            along = q * of.with_c(j) if momentum else q * (of.with_c(j) + left * of.with_c(0))
            if point:
                along = p * (of(j, y) + left * of(0, y)) + along
            parallel = h * (eta - 1.0) * _over(along, data)
            parallel = torch.where(parallel.abs() <= largest, parallel, 0.0)
            on_c = on_c + parallel * q
            on_y = on_y + parallel * p
        weight.append(h)
        total = total + h
    weight = [on_c, *weight, total * left, on_y]
    # c_1 itself, whatever the others are. A weight that is 0 anyway keeps its gradient.
    weight = [torch.where((asked == 0.0) & ~torch.isfinite(value), 0.0, value) for value in weight]
    if phi == 0.0:
        return weight
    one = torch.ones_like(nothing)
    of_c, _ = of.variance(lambda i: one if i == 0 or (i == 1 and not momentum) else nothing)
    on_u = weight[conditions + 1]
    on_d = weight[1] if momentum else 1.0 + (weight[0] + weight[1])
    g = [1.0 + (weight[0] + on_u), on_d, *weight[2 : conditions + 1], weight[-1]]
    of_g, size = of.variance(lambda i: g[i])
    ratio = _root(_over(torch.where(of_c > 0, of_c, 0.0), of_g))
    grown = phi * (ratio - 1.0)
    most = one
    for value in weight:
        most = most + value.abs()
    applies = (of_g > 1e-13 * size) & (most * (1.0 + grown.abs()) <= largest)
    grown = torch.where(applies, grown, 0.0)
    return [weight[0] + grown * (1.0 + weight[0]), *(value + grown * value for value in weight[1:])]


def guide(
    rule: Sequence[float], branches: Sequence[Tensor], scales: Sequence[Tensor], point: Tensor, m: Tensor | None,
    dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor | None]:  # fmt: skip
    """The weights in the state's dtype, and the new momentum."""

    def flat(value: Tensor) -> Tensor:
        return value.to(dtype).double().reshape(value.shape[0], -1)

    outs = [flat(branch) for branch in branches]
    vectors = [outs[-1], *(c - outs[-1] for c in outs[:-1])]
    if m is not None:
        moved = rule[RULE.index("q")] * vectors[1] + rule[RULE.index("beta")] * flat(m)
        # A sample whose scale is 1 does not see u, so its momentum stays.
        moved = torch.where((scales[0] != 1.0)[:, None], moved, flat(m))
        m = moved.to(dtype).reshape(m.shape)
        vectors = [outs[0], flat(m)]
    if uses_point(rule):
        vectors.append(flat(point))
    found = weights(rule, vectors, [scale.double() for scale in scales], m is not None, dtype)
    return [value.to(dtype) for value in found[: rows(len(branches), uses_point(rule))]], m


def mixed(mix: Sequence[Tensor], branches: Sequence[Tensor], point: Tensor, m: Tensor | None) -> Tensor:
    """The guided prediction: core/guidance.hpp's `mix`."""
    shape = (-1,) + (1,) * (point.dim() - 1)
    outs = [branch.to(point.dtype) for branch in branches]
    total = mix[1].reshape(shape) * (outs[0] - outs[-1] if m is None else m)
    for j, out in enumerate(outs[1:-1], start=2):
        total = total + mix[j].reshape(shape) * (out - outs[-1])
    total = total + mix[0].reshape(shape) * outs[0]
    total = total + mix[len(outs)].reshape(shape) * outs[-1]
    if len(mix) > rows(len(outs), False):
        total = total + mix[-1].reshape(shape) * point
    return outs[0] + total


def scales_of(guidance: Tensor, row: int, conditions: int) -> list[Tensor]:
    """The scales [1 or B] of each condition in a row."""
    lines = guidance[row].reshape(-1, guidance.shape[-1])
    return [lines[min(j, len(lines) - 1)] for j in range(conditions)]
