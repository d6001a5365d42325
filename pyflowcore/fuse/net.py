"""FusedNet: a fused network as a callable; or the module itself, where somebody wants a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..network import PRECISIONS
from .calling import Calling
from .lowered import Lowered
from .skeleton import in_dtype

__all__ = ["PRECISIONS", "FusedNet"]

_network = torch.ops.pyflowcore.network.default


class FusedNet:
    """The network of a fused field, as a callable ``net(x, times, **cond)``: what a Field wants of a network."""

    def __init__(self, module: nn.Module, calling: Calling, found: Lowered, precision: str) -> None:
        self.module, self.calling, self.lowered, self.precision = module, calling, found, precision

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        shape = x.shape
        if not shape or shape[1:].numel() != self.calling.dim:
            raise ValueError(f"x must have {self.calling.dim} elements a sample, got {list(shape)}")
        batch = shape[0]
        if t.dim() > 1 or (t.dim() == 1 and t.shape[0] not in (1, batch)):
            raise ValueError(f"t must be [{batch}] or one time for all, got {list(t.shape)}")
        given = self.given(cond, batch, x.device) if cond or self.calling.conditions else {}
        if self._differentiable(x, t, given):
            return self._by_module(x, t, given)
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        if self.precision != "float32" and x.device.type != "cuda":
            raise ValueError(
                f"precision={self.precision!r} is for CUDA; x is on {x.device}, where the arithmetic is that of x's dtype "
                "(precision='float32')"
            )
        state = self.lowered
        out = _network(
            x.to(dtype), t if t.dim() == 0 or t.shape[0] == batch else t.expand(batch),
            state.condition(given, dtype, x.device), state.params(dtype, x.device), state.layers, state.features,
            PRECISIONS.index(self.precision),
        )  # fmt: skip
        return out.to(x.dtype)

    def given(self, cond: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The named conditions as [B, size] and labels [B]."""
        names, defaults = self.calling.conditions, dict(self.calling.defaults)
        if extra := sorted(set(cond) - set(names)):
            known = ", ".join(names) or "none"
            raise TypeError(f"the fused field takes no condition {', '.join(extra)}; its conditions: {known}")
        found = {}
        for name in names:
            value = cond.get(name)
            if value is None:
                if name not in defaults:
                    raise TypeError(f"condition {name} is missing")
                value = torch.full((batch,), defaults[name], device=device)
            found[name] = self._one(name, torch.as_tensor(value), batch)
        return found

    def _one(self, name: str, value: Tensor, batch: int) -> Tensor:
        if name in self.calling.labels:
            if value.is_floating_point() or value.dtype == torch.bool:
                raise TypeError(f"{name} must be integer labels, got {value.dtype}")
            if value.numel() not in (1, batch) or value.dim() > 2:
                raise ValueError(f"{name} must hold one label a sample, [{batch}], got {list(value.shape)}")
            value = value.reshape(-1).long().expand(batch)
            # A compiled function cannot look at values, and a GPU would be waited for: there the look-up itself refuses them.
            if not torch.compiler.is_compiling() and value.device.type == "cpu" and batch:
                self._check_labels(name, value)
            return value
        size = self.calling.size(name)
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        if value.dim() == 1 and size == 1 and len(value) == batch:
            return value[:, None]
        if value.dim() < 2 or value.shape[0] not in (1, batch) or value.shape[1:].numel() != size:
            raise ValueError(f"{name} must be [{batch}, {size}], got {list(value.shape)}")
        return value.reshape(value.shape[0], size).expand(batch, size)

    def _check_labels(self, name: str, value: Tensor) -> None:
        most, low, high = self.lowered.classes(name), int(value.min()), int(value.max())
        if most is not None and not 0 <= low <= high < most:
            raise ValueError(f"{name} must be labels from 0 to {most - 1}, got {low} to {high}")

    # ------------------------------------------------------------------------------------------------------ gradients
    def _differentiable(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> bool:
        """Whether somebody may want a gradient: then the module itself has to run."""
        tensors = (x, t, *given.values())
        if not torch.compiler.is_compiling():
            if torch._C._are_functorch_transforms_active():
                return True
            if forward_ad._current_level >= 0 and any(
                forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
            ):
                return True
        return torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*tensors, *self.module.parameters())
        )

    def _by_module(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        """The module itself, in x's dtype."""
        calling, batch = self.calling, len(x)
        shaped = x.reshape(batch, *calling.shape)
        cast = {name: v if name in calling.labels else v.to(x.dtype) for name, v in given.items()}
        times = t.to(x.dtype).expand(batch)
        if calling.time != "scalar":
            return self._run(shaped, calling.shaped_time(times), cast).reshape(x.shape)
        if t.dim() == 0 or bool((times == times[:1]).all()):
            return self._run(shaped, times[0] if batch else t.to(x.dtype), cast).reshape(x.shape)
        raise ValueError("t must be one time for the whole batch: the module takes a scalar")

    def _run(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        if all(tensor.dtype == x.dtype for tensor in named.values() if tensor.is_floating_point()):
            return self.calling(self.module, x, t, given)
        return self.calling(in_dtype(self.module, x.dtype), x, t, given)
