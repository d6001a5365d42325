"""Exponential moving average of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Keeps shadow <- d shadow + (1 - d) parameter, with d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

    The short memory at the start keeps the first, useless parameters from lingering through a short training. Buffers
    are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be within [0, 1); got {decay}")
        self.decay = decay
        self.shadow: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, count: int) -> None:
        """Take in the model's parameters; ``count`` is the number of updates before this one."""
        decay = min(self.decay, (1 + count) / (10 + count))
        parameters = dict(model.named_parameters())
        current: list[Tensor] = [parameters[name] for name in self.shadow]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name (not copies)."""
        return dict(self.shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages as ``state_dict`` gives them. ValueError where names or shapes differ."""
        if state.keys() != self.shadow.keys():
            odd = sorted(state.keys() ^ self.shadow.keys())
            raise ValueError(f"state must have the model's parameter names; these differ: {odd}")
        for name, tensor in state.items():
            if tensor.shape != self.shadow[name].shape:
                raise ValueError(
                    f"state[{name!r}] must be {list(self.shadow[name].shape)}; got {list(tensor.shape)}"
                )
            self.shadow[name].copy_(tensor)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters by the averages."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.shadow[name])
