"""What the engine asks of a fused field."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from ..field import Field
from ..network import Network

__all__ = ["Fused", "is_fused"]


class Fused(Protocol):
    """A :class:`pyflowcore.Field` whose network is packed."""

    network: Network
    dim: int
    precision: str
    layers: Tensor
    features: Tensor
    module: torch.nn.Module
    net: Any
    dtype: torch.dtype | None
    time_dtype: torch.dtype | None
    time_shape: str

    def params(self, dtype: torch.dtype, device: torch.device) -> Tensor: ...

    def condition(
        self, cond: dict[str, Any], batch: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None: ...

    def check_fresh(self) -> None: ...


def is_fused(field: Field) -> TypeGuard[Fused]:
    """Whether the engine has the field's network."""
    return isinstance(getattr(field, "network", None), Network)
