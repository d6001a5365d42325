"""The arguments of fuse, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..field import Field
from .errors import CannotFuse

__all__ = ["labels_of", "module_of", "names_of", "shape_of", "sizes_of"]


def module_of(module: nn.Module) -> nn.Module:
    if isinstance(module, Field):
        raise TypeError(
            "module is a pfc.Field already: fuse its network, field.net, and give fuse the facts that it says"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    original = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if isinstance(original, torch.jit.ScriptModule):
        raise CannotFuse(
            "the module",
            "it is a TorchScript module; give fuse the module that it was made from",
            allowed=False,
        )
    return original


def names_of(inputs: Sequence[str]) -> tuple[str, ...]:
    if isinstance(inputs, str) or not all(isinstance(name, str) for name in inputs):
        raise TypeError(f"inputs must be the names of the module's inputs, ('x', 't', ...), got {inputs!r}")
    names = tuple(inputs)
    if "x" not in names or len(set(names)) != len(names):
        raise ValueError(f"inputs must name x once, and no name twice, got {names}")
    return names


def sizes_of(sizes: Mapping[str, int] | None, names: tuple[str, ...]) -> dict[str, int]:
    found = dict(sizes or {})
    for name, size in found.items():
        if name not in names or name == "t":
            raise ValueError(f"sizes has {name!r}, which is no vector of inputs {names}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"sizes[{name!r}] must be a positive integer, got {size!r}")
    return found


def labels_of(labels: Sequence[str], names: tuple[str, ...]) -> tuple[str, ...]:
    found = (labels,) if isinstance(labels, str) else tuple(labels)
    for name in found:
        if name not in names or name in ("x", "t"):
            raise ValueError(f"labels has {name!r}, which is no condition of inputs {names}")
    return found


def shape_of(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    found = tuple(shape)
    if not found or not all(isinstance(n, int) and n > 0 for n in found):
        raise ValueError(f"shape must be the shape of one x, positive integers, got {shape!r}")
    return found
