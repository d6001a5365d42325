"""The row kinds that `combine` is measured on: rows of real plans, and the same arithmetic as a user writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import pyflowcore as pfc
from pyflowcore import _core

# Philox4x32-10: ten rounds of two wide products, four exclusive ors and two key additions for four words, so about 25
# integer operations for each; Box-Muller: one logarithm, one root, a sine and a cosine for two normals, about 30 each.
OPERATIONS_PER_NORMAL = 55
SCALE = 4.0
STEPS = 10

Tensor = torch.Tensor


@dataclass(frozen=True)
class Kind:
    """A row kind. ``reads`` and ``writes`` count streams of the state's and of the field's dtype.

    ``inputs`` is how many copies of the field's next input the row writes apart from the state where both have one
    dtype; where the dtypes differ it writes one for each branch. A doubled input needs one: the state is its other
    half, which is how Sampler lays it out.
    """

    name: str
    solver: str
    row: int
    branches: int
    state_reads: int
    field_reads: int
    state_writes: int
    inputs: int
    uses_slot: bool
    noise: float
    operations: int


KINDS = (
    Kind("euler", "euler", 3, 1, 1, 1, 1, 0, False, 0.0, 2),
    Kind("euler, CFG", "euler", 3, 2, 1, 2, 1, 1, False, 0.0, 5),
    Kind("euler, CFG, input apart", "euler", 3, 2, 1, 2, 1, 2, False, 0.0, 5),
    Kind("heun, second stage", "heun", 5, 1, 2, 1, 1, 0, True, 0.0, 4),
    Kind("ab2", "ab2", 3, 1, 2, 1, 2, 0, True, 0.0, 4),
    Kind("euler, noise", "euler", 3, 1, 1, 1, 1, 0, False, 0.05, 4 + OPERATIONS_PER_NORMAL),
)


def row_of(kind: Kind) -> tuple[pfc.Plan, Tensor]:
    """The plan and its table; where the kind has noise, its coefficient is written into the row."""
    plan = pfc.plan(kind.solver, steps=STEPS)
    table = plan.table.clone()
    if kind.noise:
        table[kind.row, _core.record["draw"]] = 0.0
        table[kind.row, _core.record["s"]] = kind.noise
    return plan, table


def bytes_of(kind: Kind, n: int, state: torch.dtype, field: torch.dtype) -> tuple[int, int]:
    """The least bytes read and written: every operand once."""
    read = n * (kind.state_reads * state.itemsize + kind.field_reads * field.itemsize)
    return read, n * (kind.state_writes * state.itemsize + inputs_of(kind, state, field) * field.itemsize)


def inputs_of(kind: Kind, state: torch.dtype, field: torch.dtype) -> int:
    """How many copies of the field's next input the row writes apart from the state."""
    return kind.inputs if state == field else kind.branches


# As a user writes it. x, d (the remembered prediction), out -> next x, next input, prediction to remember.
Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
H = 1.0 / STEPS


def eager_step(kind: Kind, field: torch.dtype) -> Step:
    """Out of place, in the plainest form. The last argument is the noise, drawn where it is None."""

    def euler(x: Tensor, d: Tensor, out: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = x + H * out
        return x, x.to(field), d

    def euler_cfg(x: Tensor, d: Tensor, out: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        cond, uncond = out.chunk(2)
        x = x + H * (uncond + SCALE * (cond - uncond))
        return x, torch.cat([x, x]).to(field), d

    def heun(x: Tensor, d: Tensor, out: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = x + 0.5 * H * (d + out)
        return x, x.to(field), d

    def ab2(x: Tensor, d: Tensor, out: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = x + H * (1.5 * out - 0.5 * d)
        return x, x.to(field), out

    def noise(x: Tensor, d: Tensor, out: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = x + H * out + kind.noise * (torch.randn_like(x) if xi is None else xi)
        return x, x.to(field), d

    return {
        "euler": euler,
        "euler, CFG": euler_cfg,
        "euler, CFG, input apart": euler_cfg,
        "heun, second stage": heun,
        "ab2": ab2,
        "euler, noise": noise,
    }[kind.name]


def in_place_step(kind: Kind, x: Tensor, d: Tensor, out: Tensor, inp: Tensor | None) -> Callable[[], None]:
    """The same by hand with as few passes and as little memory as torch's operators allow."""
    batch = x.shape[0]

    def feed() -> None:
        if inp is not None:
            for first in range(0, inp.shape[0], batch):
                inp[first : first + batch].copy_(x)

    if kind.branches == 2:
        guided = torch.empty_like(out[:batch])

        def step() -> None:
            torch.lerp(out[batch:], out[:batch], SCALE, out=guided)
            x.add_(guided, alpha=H)
            feed()
    elif kind.name == "heun, second stage":

        def step() -> None:
            x.add_(d, alpha=0.5 * H).add_(out, alpha=0.5 * H)
            feed()
    elif kind.name == "ab2":

        def step() -> None:
            x.add_(out, alpha=1.5 * H).add_(
                d, alpha=-0.5 * H
            )  # a user swaps the two names; nothing is copied
            feed()
    elif kind.noise:
        xi = torch.empty_like(x)

        def step() -> None:
            x.add_(out, alpha=H).add_(xi.normal_(), alpha=kind.noise)
            feed()
    else:

        def step() -> None:
            x.add_(out, alpha=H)
            feed()

    return step
