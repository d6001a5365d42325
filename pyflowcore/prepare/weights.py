"""Weights: whether anything of a model was written, moved or replaced since the last look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Weights", "writes"]

# Fused optimizers write weights and count no versions, so their steps are counted here, of every weight that they have.
_steps: Any = WeakIdKeyDictionary()


def _count_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                _steps[parameter] = _steps.get(parameter, 0) + 1


register_optimizer_step_post_hook(_count_step)


def writes(tensor: Tensor) -> tuple[int, int]:
    """How often a tensor was written: as it counts itself, and by fused optimizers. In inference mode nothing is counted."""
    return 0 if tensor.is_inference() else tensor._version, _steps.get(tensor, 0) if _steps else 0


# Of every module its children; of every parameter and buffer which it is, where it lies and how often it was written.
Marks = tuple[tuple[Any, ...], tuple[Any, ...]]


class Weights:
    """A model's modules, parameters and buffers under observation.

    What is not seen: writes through another tensor that shares a weight's memory (``.data``, a flat vector of all weights), and
    numbers that are no tensors, such as a norm's eps.

    Attributes:
        unseen: why writes cannot be seen, so that nothing may be made of the weights and kept; empty where they can.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._held: list[Tensor] = []
        self.unseen = ""
        self._marks = self._look()

    def changed(self) -> str:
        """What happened since the last look: "" for nothing, "written", or "rebuilt" where a module is another one."""
        before, self._marks = self._marks, self._look()
        if self._marks == before:
            return ""
        if self._marks[0] == before[0]:
            return "written"
        self._modules = list(self._model.modules())
        self._marks = self._look()
        return "rebuilt"

    def first(self) -> Tensor:
        """A parameter, for its dtype and device."""
        return next(self._model.parameters())

    def _look(self) -> Marks:
        children: list[Any] = []
        found: list[Any] = []
        held: list[Tensor] = []
        self.unseen = ""
        for module in self._modules:
            children.append(tuple(map(id, module._modules.values())))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is None:
                    continue
                held.append(tensor)
                if type(tensor) not in (Tensor, nn.Parameter):
                    self.unseen = f"the weights are {type(tensor).__name__}s"
                elif tensor.is_inference():
                    self.unseen = "the weights were made in inference mode, where writes are not counted"
                else:
                    found.append((id(tensor), tensor.data_ptr(), *writes(tensor)))
        # Held, so that no other tensor gets the address by which one is known; modules are held by the list.
        self._held = held
        return tuple(children), tuple(found)
