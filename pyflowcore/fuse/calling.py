"""Calling: how a module takes x, the time and its conditions, found out once and used for tracing, checks and gradients."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Calling", "style_of"]


@dataclass(frozen=True)
class Calling:
    """How the module wants its inputs.

    Attributes:
        inputs: their names, in the module's order.
        shape: of one x.
        style: "joined" (one tensor, concatenated), or the number of inputs that are passed by position; others go by name.
        time: "batch" [B], "column" [B, 1], or "scalar", one number for all.
        sizes: of the vector conditions.
        labels: names of the conditions that are integers [B].
        defaults: labels that stand for conditions that are not given.
    """

    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    style: str | int
    time: str
    sizes: tuple[tuple[str, int], ...]
    labels: frozenset[str]
    defaults: tuple[tuple[str, int], ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(name for name in self.inputs if name not in ("x", "t"))

    @property
    def dim(self) -> int:
        return torch.Size(self.shape).numel()

    def size(self, name: str) -> int:
        return dict(self.sizes)[name]

    def __call__(self, module: nn.Module, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Any:
        """x [B, *shape], t as ``time`` says, conditions [B, size] and labels [B]."""
        given = {"x": x, "t": t, **conditions}
        values = [given[name] for name in self.inputs]
        if self.style == "joined":
            return module(torch.cat(values, dim=-1))
        assert isinstance(self.style, int)
        named = dict(zip(self.inputs[self.style :], values[self.style :], strict=True))
        return module(*values[: self.style], **named)

    def shaped_time(self, t: Tensor) -> Tensor:
        """Times [B] as the module takes them; a scalar one has to be one for all."""
        return t[:, None] if self.time == "column" else t


def style_of(module: nn.Module, inputs: Sequence[str]) -> str | int:
    """ "joined" where forward takes one tensor, else how many of the inputs it takes by position."""
    if isinstance(module, nn.Sequential):
        return "joined"
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return len(inputs)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = {p.kind for p in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds and len(positional) < 2:
        return len(inputs)
    if len(positional) <= 1:
        return "joined"
    count = min(len(positional), len(inputs))
    _check_order([p.name for p in positional], tuple(inputs), count)
    return count


def _check_order(parameters: Sequence[str], inputs: tuple[str, ...], count: int) -> None:
    """Whether inputs that go by position are meant for parameters of other names.

    A parameter x alone may be something else than the state (what was observed, say); t is the time.
    """
    apart = [name for i, name in enumerate(inputs[:count]) if name in parameters and parameters[i] != name]
    if "t" not in apart and len(apart) < 2:
        return
    known = [name for name in parameters if name in inputs]
    rest = [name for name in inputs if name not in parameters]
    raise ValueError(
        f"inputs is {inputs}, and forward takes ({', '.join(parameters)}): {' and '.join(apart)} would arrive in other places. "
        + (
            f"Give inputs={tuple(known)}"
            if not rest and tuple(known) == tuple(parameters[: len(known)])
            else "Give inputs in forward's order, the conditions by its names"
        )
    )
