"""PreparedField: a field whose model is evaluated through the fused operators, with what a trajectory shares made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..field import Field, as_field
from ..models.action_expert import ActionExpert
from ..models.dit import DiT
from ..models.mmdit import MMDiT
from ..models.unet import UNet
from .action_expert import PackedActionExpert
from .dit import PackedDiT
from .mmdit import PackedMMDiT
from .packing import Evaluate, Packed
from .straight import transformed
from .unet import PackedUNet

__all__ = ["PreparedField", "prepare"]

# How each model is evaluated. Subclasses may compute something else, so they are not taken for their base.
PACKED: dict[type[nn.Module], type[Packed[Any]]] = {
    ActionExpert: PackedActionExpert,
    DiT: PackedDiT,
    MMDiT: PackedMMDiT,
    UNet: PackedUNet,
}


class PreparedNet:
    """The model as a callable net(x, t, **cond): one evaluation, nothing of a trajectory kept."""

    def __init__(self, packed: Packed[Any]) -> None:
        self.packed = packed
        self.__name__ = f"prepared {type(packed.source).__name__}"

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if wants_gradient(self.packed, x, t, cond) or transformed():
            # In the model's own dtype, which is that of what learns.
            return self.packed.source(x.to(next(self.packed.source.parameters()).dtype), t, **cond)
        check_conditions(self.packed, cond)
        times = t.reshape(1, -1).expand(1, len(x)) if t.numel() != len(x) else t.reshape(1, -1)
        with torch.no_grad():
            return self.packed.start(times, cond, len(x))(x, 0)


def wants_gradient(packed: Packed[Any], x: Tensor, t: Tensor, cond: dict[str, Any]) -> bool:
    """The fused path is for evaluation; where something learns, the model itself runs."""
    if not torch.is_grad_enabled():
        return False
    tensors = [x, t, *_tensors(list(cond.values())), *packed.source.parameters()]
    return any(tensor.requires_grad for tensor in tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those of conditions, also where they come in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def check_conditions(packed: Packed[Any], cond: dict[str, Any]) -> None:
    unknown = sorted(set(cond) - set(packed.conditions))
    if unknown:
        raise TypeError(
            f"cond: {type(packed.source).__name__} takes {', '.join(packed.conditions) or 'no conditions'}; got "
            f"{', '.join(unknown)}"
        )


class PreparedField(Field):
    """A field like any other, made by :func:`prepare`. Inside a Sampler, what depends on the plan's times and on the
    conditions alone is computed once a trajectory, for all rows in one product of each layer.

    Attributes:
        model: the original; gradients go through it, with the weights that it has then.
    """

    net: PreparedNet

    def __init__(self, field: Field, packed: Packed[Any]) -> None:
        super().__init__(
            PreparedNet(packed), field.prediction, field.path, field.sign, field.time, field.time_shape,
            packed.dtype if packed.dtype != torch.float32 else field.dtype, field.round_time, field.time_dtype,
        )  # fmt: skip

    @property
    def model(self) -> nn.Module:
        return self.net.packed.source

    def refresh(self) -> None:
        """Takes the weights that the model has now. Needed after training where ``dtype`` is not the model's own, and after
        writes that cannot be seen (docs/prepared-fields.md)."""
        self.net.packed.refresh()

    def stale(self) -> bool:
        """Whether the model's weights were written since they were copied."""
        return self.net.packed.stale()

    def held(self) -> tuple[Any, ...]:
        """What evaluations read that the caller does not own, for who keeps its addresses."""
        return self.net.packed.held()

    def device(self) -> torch.device | None:
        for parameter in self.model.parameters():
            return parameter.device
        return None

    def trajectory(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """What evaluates rows of a plan: (x, row) -> output.

        Args:
            times: the network's time of each row, [rows], on the state's device.
            cond: the conditions of n samples, those of all branches stacked.
        """
        check_conditions(self.net.packed, cond)
        with torch.no_grad():
            return self.net.packed.start(times, cond, n)

    def __repr__(self) -> str:
        return f"PreparedField({super().__repr__()}, dtype={self.net.packed.dtype})"


def prepare(
    model: nn.Module | Field | Callable[..., Tensor], *, dtype: torch.dtype | None = None
) -> PreparedField:
    """A reference model's weights as a field that samples through fused operators.

    Args:
        model: a model of ``pyflowcore.models``, or a :class:`pyflowcore.Field` around one, whose facts are kept.
        dtype: of the weights and of what the network computes: None for the model's own, or bfloat16, float16, float32,
            float64. The state of the trajectory stays float32 (or float64).

    Returns:
        A :class:`PreparedField`: the Sampler makes the modulations of all steps, and whatever else depends on times and
        conditions alone, before the first step of each call.

    Raises:
        TypeError: naming the argument; for a model of another kind, with the kinds that can be prepared.
    """
    field = as_field(model)
    net = field.net
    if isinstance(field, PreparedField):
        raise TypeError("model is a prepared field already; prepare its .model with another dtype")
    kind = PACKED.get(type(net)) if isinstance(net, nn.Module) else None
    if kind is None:
        allowed = ", ".join(sorted(one.__name__ for one in PACKED))
        raise TypeError(f"model must be one of {allowed}, or a Field around one; got {type(net).__name__}")
    if dtype not in (None, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"dtype must be float64, float32, bfloat16, float16 or None, got {dtype}")
    return PreparedField(field, kind(net, dtype))
