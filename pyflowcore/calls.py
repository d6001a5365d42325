"""Call: what one call of a sampler asks for, with its arguments checked; the loop, the engine and ``explain`` read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import branches, conditions, paths
from .edits import Hook, check_known
from .field import Field, as_field
from .given_noise import Noise, as_noise
from .guidance import CFG
from .initial import Begin, count_of, seeds_once
from .plans import Plan
from .scales import Scale

__all__ = [
    "Call",
    "Callback",
    "check_callable",
    "check_device",
    "check_field",
    "mappings",
    "read_call",
    "weak_of",
]

Callback = Callable[[int, int, float, Tensor, "Tensor | None"], object]


@dataclass(slots=True)
class Call:
    """The arguments of ``Sampler.__call__``, which documents them.

    Attributes:
        several: the conditions, one dict for each; ``guided`` says whether there are branches to guide between, ``weak`` is
            autoguidance's second field.
    """

    plan: Plan
    guidance: CFG | None
    field: Field
    begin: Begin
    several: list[dict[str, Any]]
    uncond: dict[str, Any]
    shared: dict[str, Any]
    guided: bool
    weak: Field | None
    guidance_scale: Scale | None
    mask: Tensor | None
    known: Tensor | None
    known_noise: str
    hook: Hook | None
    enable_grad: bool
    callback: Callback | None
    progress: bool
    return_trajectory: bool

    def batch(self) -> int | None:
        """The number of samples, where the arguments say it."""
        given = self.begin.given()
        if isinstance(given, Tensor) and given.dim():
            return len(given)
        return count_of(self.begin.seeds, self.begin.batch)


def read_call(
    plan: Plan,
    guidance: CFG | None,
    field: Field | Callable[..., Tensor],
    *,
    shape: Sequence[int] | None = None,
    x0: Tensor | None = None,
    init: Tensor | None = None,
    seeds: Iterable[int] | Tensor | None = None,
    noise: Noise | None = None,
    batch: int | None = None,
    cond: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    uncond: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    guidance_scale: Scale | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: str = "start",
    hook: Hook | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    enable_grad: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
    return_trajectory: bool = False,
) -> Call:
    """Checks what can be checked before anything is made of it, and says where the trajectory will be."""
    check_callable("hook", hook)
    check_callable("callback", callback)
    check_device(device)
    check_known(mask, known, known_noise)
    facts = as_field(field)
    check_field(plan, facts)
    several, uncond, shared = mappings(cond, uncond, shared)
    guided = branches.guided(guidance, several, uncond)
    weak = weak_of(plan, guidance, guided)
    keys = seeds_once(seeds)
    begin = Begin(x0, shape, init, keys, batch, device, dtype, as_noise(noise))
    given = begin.given()
    if given is None and keys is None and batch is None:
        begin.batch = conditions.batch_of(several[0])
    if device is None and given is None:
        if (tensor := conditions.first_tensor(several[0])) is not None:
            begin.device = tensor.device
        elif not isinstance(seeds, Tensor):
            begin.device = facts.device()
    return Call(
        plan, guidance, facts, begin, several, uncond, shared, guided, weak, guidance_scale, mask, known, known_noise, hook,
        enable_grad, callback, progress, return_trajectory,
    )  # fmt: skip


def mappings(
    cond: Any, uncond: Any, shared: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """(the conditions, the unconditional one, what is shared), each the field's keyword arguments."""
    several = branches.conditions_of(cond)
    uncond, shared = _mapping(uncond, "uncond"), _mapping(shared, "shared")
    if shared and (both := sorted(set(several[0]) & set(shared))):
        raise ValueError(f"shared and cond both have {', '.join(both)}")
    return several, uncond, shared


def weak_of(plan: Plan, guidance: CFG | None, guided: bool) -> Field | None:
    """The second field of autoguidance."""
    if not guided or guidance is None or guidance.weak is None:
        return None
    check_field(plan, guidance.weak, "weak: ")
    return guidance.weak


def check_field(plan: Plan, field: Field, whose: str = "") -> None:
    """Refuses a field that is not what the plan is for."""
    if field.prediction != plan.prediction:
        raise ValueError(
            f"{whose}prediction: the plan is for {plan.prediction!r}, the field predicts {field.prediction!r}"
        )
    if not paths.same(field.path, plan.path):
        raise ValueError(
            f"{whose}path: the plan is for {plan.path}, the field was trained on {field.path}; pfc.plan(..., "
            "path=field.path, along=...) integrates it on another path"
        )


def check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, or None, got {type(value).__name__} {value!r}")


def check_device(device: object) -> None:
    if device is None or isinstance(device, torch.device):
        return
    try:
        torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch.device or its name, got {device!r}: {error}") from None


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict of the field's keyword arguments, got {type(value).__name__}")
    return value
