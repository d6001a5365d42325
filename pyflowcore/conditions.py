"""Conditions: one batch out of those of all branches, or the reason why that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["CannotDouble", "batch_of", "check_keys", "equal", "fill", "first_tensor", "map_tensors", "stack"]


class CannotDouble(Exception):
    """The conditions do not fit into one batch; the message says why."""


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor inside nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value
    children = (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    )
    for child in children:
        if (found := first_tensor(child)) is not None:
            return found
    return None


def batch_of(cond: dict[str, Any] | None) -> int | None:
    """The batch size that the first batched tensor of a condition has."""
    tensor = first_tensor(cond)
    return tensor.shape[0] if tensor is not None and tensor.dim() > 0 else None


def check_keys(
    cond: dict[str, Any], other: dict[str, Any], name: str = "cond", other_name: str = "uncond"
) -> None:
    """Both must be given for the same arguments of the field."""
    if missing := sorted(set(cond) - set(other)):
        raise ValueError(f"{other_name} lacks {', '.join(missing)}, which {name} has")
    if extra := sorted(set(other) - set(cond)):
        raise ValueError(f"{other_name} has {', '.join(extra)}, which {name} lacks")


def _like(null: Tensor, value: Tensor, where: str, name: str = "uncond") -> Tensor:
    """A null condition written once, for every sample: a scalar, [1, ...] or without the batch dimension."""
    if null.shape == value.shape:
        return null
    try:
        return null.expand(value.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}{where} has shape {list(null.shape)}, which does not broadcast to cond's {list(value.shape)}"
        ) from None


def _rebuild(like: Any, values: list[Any]) -> Any:
    """A list, tuple or named tuple of like's type."""
    return like._make(values) if hasattr(like, "_make") else type(like)(values)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A condition with its tensors changed, through nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(child, change) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return _rebuild(value, [map_tensors(child, change) for child in value])
    return value


def fill(cond: Any, uncond: Any, where: str = "") -> Any:
    """uncond with its tensors broadcast to the shapes of cond's."""
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor):
        return _like(uncond, cond, where)
    if isinstance(cond, dict) and isinstance(uncond, dict) and cond.keys() == uncond.keys():
        return {key: fill(cond[key], uncond[key], f"{where}[{key!r}]") for key in cond}
    if isinstance(cond, (list, tuple)) and isinstance(uncond, (list, tuple)) and len(cond) == len(uncond):
        return _rebuild(
            cond, [fill(c, u, f"{where}[{i}]") for i, (c, u) in enumerate(zip(cond, uncond, strict=True))]
        )
    return uncond


def equal(cond: Any, uncond: Any) -> bool:
    """Whether two objects are one; arrays, whose comparison is no truth value, count as different."""
    try:
        return cond is uncond or bool(cond == uncond)
    except (ValueError, TypeError, RuntimeError):
        return False


def stack(values: list[Any], batch: int, where: str = "") -> Any:
    """[cond; ...; uncond] along the first dimension of every tensor, through nested dicts, lists and tuples."""
    cond = values[0]
    names = [*("cond" if i == 0 else f"cond[{i}]" for i in range(len(values) - 1)), "uncond"]
    if all(value is cond for value in values) and not isinstance(cond, (Tensor, dict, list, tuple)):
        return cond
    for name, value in zip(names, values, strict=True):
        if type(cond) is not type(value) and not (isinstance(cond, Tensor) and isinstance(value, Tensor)):
            raise CannotDouble(
                f"cond{where} is {type(cond).__name__}, {name}{where} is {type(value).__name__}"
            )
    if isinstance(cond, Tensor):
        if cond.dim() == 0 or cond.shape[0] != batch:
            if all(value is cond for value in values):
                return cond
            raise CannotDouble(
                f"cond{where} has shape {list(cond.shape)}, which does not begin with the batch size {batch}"
            )
        parts = [cond]
        for name, value in zip(names[1:], values[1:], strict=True):
            part = _like(value, cond, where, name)
            if part.dtype != cond.dtype or part.device != cond.device:
                raise CannotDouble(f"cond{where} and {name}{where} differ in dtype or device")
            parts.append(part)
        return torch.cat(parts)
    for name, value in zip(names, values, strict=True):
        if isinstance(cond, dict):
            if cond.keys() != value.keys():
                raise CannotDouble(f"cond{where} and {name}{where} have different keys")
        elif isinstance(cond, (list, tuple)):
            if len(cond) != len(value):
                raise CannotDouble(f"cond{where} and {name}{where} have different lengths")
        elif not equal(cond, value):
            raise CannotDouble(
                f"cond{where} is {cond!r} and {name}{where} is {value!r}: one batch can have but one"
            )
    if isinstance(cond, dict):
        return {key: stack([value[key] for value in values], batch, f"{where}[{key!r}]") for key in cond}
    if isinstance(cond, (list, tuple)):
        parts = [stack(list(v), batch, f"{where}[{i}]") for i, v in enumerate(zip(*values, strict=True))]
        return _rebuild(cond, parts)
    return cond
