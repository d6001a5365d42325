"""How large a network is and how much one evaluation of it computes, without computing it.

Build the network under ``torch.device("meta")`` and pass meta tensors, and nothing is allocated either:

    with torch.device("meta"):
        model = models.named("SiT-XL/2")
        size = count(model, torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.int64))
    size.parameters, size.multiply_adds  # 674,834,720 and 118.638e9
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Count:
    """What ``count`` found. Biases, activations, softmax, modulations and residual sums are not counted.

    Attributes:
        parameters: learned numbers; shared ones once, fixed tables not at all.
        products: multiply-adds of matrix products, convolutions and attention, of the whole batch.
        normed: elements that norm modules answered, one multiply-add each.
    """

    parameters: int
    products: int
    normed: int

    @property
    def multiply_adds(self) -> int:
        """products + normed: what papers on vision call flops, one for a multiplication with its addition.

        A normed element counts one because the figures published for DiT at patch 2 then come out to the last digit
        (Peebles & Xie 2023, table 4: 6.06, 23.01, 80.71 and 118.64 Gflops). It is a few ten-thousandths of the whole.
        """
        return self.products + self.normed


def parameters(model: nn.Module) -> int:
    """The number of learned numbers of a module."""
    return sum(parameter.numel() for parameter in model.parameters())


def count(model: nn.Module, *args: Any, **kwargs: Any) -> Count:
    """Parameters and multiply-adds of ``model(*args, **kwargs)``, evaluated once, on any device ("meta" for free).

    Norms are seen where they are modules (LayerNorm, RMSNorm, GroupNorm), not as functions.
    """
    normed = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal normed
        normed += output.numel()

    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, _NORMS)]
    counter = FlopCounterMode(display=False)
    try:
        # The counter does not know every device's fused attention; of matrix products it sees all.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return Count(parameters(model), counter.get_total_flops() // 2, normed)
