"""The products of a model's linear layers, with weights packed as the machine's matrix kernels want them.

On a CPU PyTorch gives a layer's product to a BLAS, which packs the weights at every call. oneDNN, which PyTorch carries
too, takes weights that were packed once; at the shapes of a block it reaches 1.3 to 1.6 times the rate on the machines that
were measured (docs/notes/prepared.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import DisableTorchFunction

from .joined import Joined
from .slices import Slice
from .straight import watched

__all__ = ["Products", "why_not_packed"]


# A call of oneDNN through PyTorch takes 15 microseconds more than one of the BLAS, which at the difference of their rates is
# worth it from some 4 million operations on, on both cores of the machine that was measured.
LEAST_OPERATIONS = 4 << 20


def why_not_packed(device: torch.device, dtype: torch.dtype) -> str:
    """Why products of such weights are PyTorch's own; empty where oneDNN takes packed ones."""
    if device.type != "cpu":
        return f"packed weights are for CPUs, the weights are on {device.type}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn.enabled is False"
    operators = torch.ops.mkldnn
    if not all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return "this PyTorch does not pack weights for oneDNN"
    supported = dtype == torch.float32
    if dtype == torch.bfloat16:
        supported = bool(operators._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        supported = bool(operators._is_mkldnn_fp16_supported())
    if not supported:
        return f"oneDNN has no products of {str(dtype).removeprefix('torch.')} on this machine"
    return ""


class Products:
    """x W^T of linear layers. A layer's weights are packed at its first product, and again after they were written.

    Args:
        model: whose layers they are; :meth:`follow` watches all its parameters.

    Attributes:
        reason: why the products are PyTorch's own; empty where the weights are packed.
    """

    def __init__(self, model: nn.Module) -> None:
        # Their dicts rather than they themselves, for a parameter may be replaced.
        self._parameters = [module._parameters for module in model.modules() if module._parameters]
        self._packed: dict[tuple[int, str], Tensor] = {}
        self._marks: tuple[tuple[int, int], ...] = ()
        self.reason = ""
        self.follow()

    def follow(self) -> bool:
        """Forgets the packed weights where the model's were written or moved since, and says whether. To be called as a
        trajectory begins."""
        marks = self._written()
        if marks == self._marks:
            return False
        self._packed.clear()
        self._marks = marks
        first = next(self._all())
        self.reason = why_not_packed(first.device, first.dtype)
        return True

    def _all(self) -> Iterator[Tensor]:
        return (p for own in self._parameters for p in own.values() if p is not None)

    def __call__(self, layer: nn.Linear | Slice | Joined, x: Tensor, *, bias: bool = False) -> Tensor:
        """x [..., in_features] -> [..., out_features], with the layer's bias on request alone."""
        added = layer.bias if bias else None
        if self.reason or 2 * x.numel() * layer.out_features < LEAST_OPERATIONS or watched():
            return F.linear(x, layer.weight, added)
        rows = x.numel() // x.shape[-1]
        packed = self.kept(
            layer,
            "packed",
            lambda: torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous(), rows),
        )
        return torch.ops.mkldnn._linear_pointwise(x, packed, added, "none", [], "")

    def kept(self, layer: nn.Module | Slice | Joined, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` makes of the layer's weights: made once, and again after the model's weights were written."""
        key = id(layer), name
        found = self._packed.get(key)
        if found is None:
            # Unseen by what records the evaluation, and so are the modes, whose changes it would repeat: this happens once.
            # Ordinary tensors, also where the first call is inside torch.inference_mode().
            with DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
                found = self._packed[key] = make()
        return found

    def _written(self) -> tuple[tuple[int, int], ...]:
        # Weights that were made under inference mode count no versions; they cannot be trained either.
        return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._all())

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed: its layout is this machine's."""
        return self.__dict__ | {"_packed": {}}
