"""What a cast casts to: ``to``, ``type`` and ``type_as`` say it as a dtype, a tensor, a tensor type or the name of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["target"]

_DTYPES = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}


def target(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of a cast by the method of this name, called with these arguments after the tensor; None where it has none."""
    if name in _DTYPES:
        return _DTYPES[name]
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, Tensor):
            return value.dtype
        if name == "type" and value is not None:
            kind = getattr(torch, value.rpartition(".")[2], None) if isinstance(value, str) else value
            dtype = getattr(kind, "dtype", None)
            if isinstance(dtype, torch.dtype):
                return dtype
    return None
