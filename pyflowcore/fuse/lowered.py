"""Lowered: the network of a module with its present weights, checked against the module itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import network
from .calling import Calling
from .errors import CannotFuse
from .lowering import Condition, lower
from .tracing import InFloat64, check_buffers, double_copy, trace

__all__ = ["Lowered", "check_structure", "lowered"]

_POINTS = 16
# Of an output's own size, and of the largest one's: what float64 leaves where large terms cancel.
_TOLERANCE, _ROUNDING = 1e-9, 1e-12


@dataclass(frozen=True)
class Lowered:
    """What a fused field runs on. Nothing in it changes but the cache, whose entries are built first and then put there.

    Attributes:
        network: layers, features and sizes; weights in float64.
        conditions: what its conditions are made of, in their order.
        layers, features: the network's tables, float64 on the CPU.
        weights: the module's parameters and buffers as they were; ``marks``: what tells that they were written.
    """

    network: network.Network
    conditions: tuple[Condition, ...]
    layers: Tensor
    features: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)
    marks: tuple[tuple[int, int], ...] = ()
    cache: dict[tuple[str, torch.dtype, str], Tensor] = field(default_factory=dict)

    def params(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = ("params", dtype, str(device))
        found = self.cache.get(key)
        if found is None:
            # An ordinary tensor also where the first call is inside torch.inference_mode().
            with torch.inference_mode(False), torch.no_grad():
                found = self.cache[key] = self.network.pack(dtype, device)
        return found

    def table(self, number: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The table of the condition of this number."""
        key = (f"table {number}", dtype, str(device))
        found = self.cache.get(key)
        if found is None:
            table = self.conditions[number].table
            assert table is not None
            with torch.inference_mode(False), torch.no_grad():
                found = self.cache[key] = table.to(device=device, dtype=dtype)
        return found

    def written(self, module: nn.Module) -> bool:
        """Whether the module's weights may have changed; a write to ``.data`` goes unseen."""
        return _marks(module) != self.marks

    def stale(self, module: nn.Module) -> bool:
        """Whether the module's weights have other values now."""
        now = tensors_of(module)
        return now.keys() != self.weights.keys() or any(
            tensor.shape != was.shape or not torch.equal(tensor.detach().to(was), was)
            for tensor, was in ((now[name], self.weights[name]) for name in now)
        )

    def classes(self, name: str) -> int | None:
        """How many labels a condition may have: as many as its smallest table; None where none is looked up."""
        tables = [block.table for block in self.conditions if block.name == name]
        return min((len(table) for table in tables if table is not None), default=None)

    def condition(self, given: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """[B, C] from conditions [B, size] and labels [B]."""
        if not self.conditions:
            return None
        parts = []
        for number, block in enumerate(self.conditions):
            value = given[block.name]
            if block.table is not None:
                # Unlike an index, this does not take -1 for the last row, on any device.
                parts.append(F.embedding(value.to(device), self.table(number, dtype, device)))
            else:
                parts.append(value.to(device=device, dtype=dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _marks(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """What changes when a parameter or buffer is written or replaced; writes through ``.data`` escape it."""
    return tuple(
        (tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
        for tensor in tensors_of(module).values()
    )


def lowered(module: nn.Module, calling: Calling, times: Tensor, guessed: tuple[str, ...] = ()) -> Lowered:
    """The network of a module, compared with it at random points and at these times, float64.

    Raises:
        CannotFuse, WantsLabels, WantsSize.
    """
    marks, weights = (
        _marks(module),
        {name: tensor.detach().clone() for name, tensor in tensors_of(module).items()},
    )
    for name, _ in module.named_parameters():
        if not bool(weights[name].isfinite().all()):
            raise CannotFuse(name, "it has values that are not finite", allowed=False)
    found = _lowered(double_copy(module), calling, times, guessed)
    return replace(found, weights=weights, marks=marks)


def check_structure(module: nn.Module, calling: Calling, times: Tensor) -> None:
    """Whether the module is recognised whatever its weights are: many begin with a last layer of zeros, which would hide what
    comes before it."""
    other = double_copy(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                width = parameter.shape[-1] if parameter.dim() > 1 else 4
                fresh = 0.5 * noise / max(width, 1) ** 0.5
                parameter.copy_(
                    torch.where(parameter == 0, fresh, parameter * (1 + 0.1 * noise.clamp(-3, 3)))
                )
    _lowered(other, calling, times)


def _lowered(module: nn.Module, calling: Calling, times: Tensor, guessed: tuple[str, ...] = ()) -> Lowered:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    tape, output = trace(module, calling, guessed)
    check_buffers(module, before)
    net, conditions = lower(tape, output)
    found = Lowered(net, conditions, net.layer_table(), net.feature_table())
    # Its own constants are finite; products of them may not be.
    if not all(bool(tensor.isfinite().all()) for tensor in _numbers(found)):
        raise CannotFuse("the module", "the weights that follow from its own are not finite", allowed=False)
    _verify(module, calling, found, times)
    check_buffers(module, before)
    return found


def _numbers(found: Lowered) -> list[Tensor]:
    layers = [tensor for layer in found.network.layers for tensor in (layer.weight, layer.bias)]
    tables = [block.table for block in found.conditions]
    return [tensor for tensor in (*layers, *tables, found.features) if tensor is not None]


def _verify(module: nn.Module, calling: Calling, found: Lowered, times: Tensor) -> None:
    """The network against the module, both in float64."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)

    spread = torch.rand(_POINTS, generator=generator, dtype=torch.float64)
    every = torch.cat([times, spread])
    runs = [(one, 4) for one in every[::4]] if calling.time == "scalar" else [(every, len(every))]
    for t, batch in runs:
        x = noise(batch, *calling.shape)
        given = {
            name: torch.randint(found.classes(name) or 1, (batch,), generator=generator)
            if name in calling.labels
            else noise(batch, calling.size(name))
            for name in calling.conditions
        }
        with torch.no_grad(), InFloat64():
            try:
                want = calling(module, x, calling.shaped_time(t), given).reshape(batch, -1)
            except Exception as error:
                message = f"forward failed in float64: {type(error).__name__}: {error}"
                raise CannotFuse("the module", message, allowed=False) from error
        got = network.forward(
            x.flatten(1), t.expand(batch), found.condition(given, torch.float64, x.device),
            found.params(torch.float64, x.device), found.layers, found.features,
        )  # fmt: skip
        if not bool(want.isfinite().all()):
            raise CannotFuse(
                "the module", "its outputs at random points are not finite in float64", allowed=False
            )
        scales = want.abs().amax(dim=0)
        allowed = _TOLERANCE * scales + _ROUNDING * (1 + scales.max())
        # Whatever is not within the bound, NaN included.
        if not bool(((got - want).abs() <= allowed).all()):
            worst = int(((got - want).abs() / allowed).amax(dim=0).nan_to_num(posinf=0.0).argmax())
            raise CannotFuse(
                "the module",
                "it computes something that was not recognised: the fused network differs by "
                f"{float((got - want)[:, worst].abs().max()):.3g} (of values up to {float(scales[worst]):.3g})",
            )
    found.cache.clear()
