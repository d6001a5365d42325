"""A module in another dtype for one call: the same parts with other tensors, so that the module itself stays untouched."""

from __future__ import annotations

import functools
from collections import defaultdict
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_dtype"]


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module like this one whose floating tensors (parameters, buffers, plain attributes) are casts of this one's.

    Gradients flow through the casts to the module's own parameters. Nothing is written to the module, so any number of
    threads may do this, and use the module, at once; what the forward of the copy writes to itself is lost with it. Modules
    are followed through attributes, lists, tuples, dicts, their own bound methods and partials; anything else is shared.
    """
    found: Any = _Clone(dtype)(module)
    return found


class _Clone:
    """Clones by identity: what is shared inside the module (tied weights, repeated parts) is shared inside the clone."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.known: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if id(value) in self.known:
            return self.known[id(value)]
        if isinstance(value, Tensor):
            made = value.to(self.dtype) if value.is_floating_point() else value
            self.known[id(value)] = made
            return made
        if isinstance(value, nn.Module):
            if isinstance(original := vars(value).get("_modules", {}).get("_orig_mod"), nn.Module):
                return self(original)  # what torch.compile wraps
            part = type(value).__new__(type(value))
            self.known[id(value)] = part  # before its attributes, which may lead back to it
            vars(part).update({name: self(child) for name, child in vars(value).items()})
            return part
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self(value.__self__))
        if type(value) is functools.partial:
            return functools.partial(self(value.func), *self(value.args), **self(value.keywords))
        if type(value) in (list, tuple):
            return type(value)(self(child) for child in value)
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            clone: Any = type(value).__new__(type(value))
            if isinstance(value, defaultdict):
                clone.default_factory = value.default_factory
            clone.update({key: self(child) for key, child in value.items()})
            return clone
        return value
