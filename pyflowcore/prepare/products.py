"""The products of a model's linear layers, with weights packed as the machine's matrix kernels want them.

On a CPU PyTorch gives a layer's product to a BLAS, which packs the weights at every call. oneDNN, which PyTorch carries
too, takes weights that were packed once; at the shapes of a block it reaches 1.3 to 1.6 times the rate on the machines that
were measured (docs/notes/prepared.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import DisableTorchFunction

from .joined import Joined
from .slices import Slice
from .straight import watched
from .weights import Weights

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
    """x W^T of linear layers, whose weights are packed at their first product.

    Args:
        model: whose layers they are.

    Attributes:
        weights: the model's, under observation.
        reason: why the products are PyTorch's own; empty where the weights are packed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = Weights(model)
        self._kept: dict[tuple[int, str], tuple[Any, Tensor]] = {}
        self.reason = self._why()

    def follow(self) -> str:
        """To be called as a trajectory begins: forgets what was made of the weights where they were written, moved or replaced
        since, and says which (as ``Weights.changed``)."""
        changed, reason = self.weights.changed(), self._why()
        if changed or reason != self.reason:
            # Another dict, since a trajectory on another thread may still fill this one.
            self._kept, self.reason = {}, reason
            return changed or "written"
        return ""

    def _why(self) -> str:
        first = self.weights.first()
        return self.weights.unseen or why_not_packed(first.device, first.dtype)

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
        if self.weights.unseen or watched():
            return make()
        store, key = self._kept, (id(layer), name)
        if key not in store:
            # Unseen by what records the evaluation, and so are the modes, whose changes it would repeat: this happens once.
            # Ordinary tensors, also where the first call is inside torch.inference_mode().
            with DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
                store[key] = layer, make()  # with the layer, whose address is its name
        return store[key][1]

    def kept_now(self) -> dict[tuple[int, str], tuple[Any, Tensor]]:
        """What was made so far of the weights as they are."""
        return self._kept
