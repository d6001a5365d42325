"""A field's output together with the trace of its Jacobian, by Jacobian-vector products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ..conditions import map_tensors

__all__ = ["MEMORY", "Trace"]

# Bytes of tangents in the field's input at once, where the caller does not say.
MEMORY = 2**26

Net = Callable[..., Tensor]
Products = tuple[Tensor, Tensor]
Way = Callable[[Net, Tensor, Tensor, dict[str, Any], Tensor], Products]


class Trace:
    """Evaluates ``net(x, time, **cond)`` and the trace of its Jacobian in x, per sample.

    Each sample's output must depend on that sample alone. The products J v come by the first of these that the field allows,
    tried at the first evaluation:

    - forward mode with ``torch.func.vmap`` over the tangents: the output itself is evaluated once a chunk;
    - forward mode on the batch repeated once per tangent: for fields that vmap cannot look into;
    - reverse mode, v^T J in place of J v, one backward pass per tangent: for fields with an operator without a forward
      derivative (fused attention, a custom autograd function);
    - nothing, for a field whose output stays the same at another x.

    A way is passed over only for a RuntimeError that the field itself does not raise; a field that draws random numbers is
    refused.

    Args:
        probes: [K, B, ...], held fixed; None for the exact trace, by unit tangents.
        chunk: tangents at once; None for as many as fit into ``memory``.
        memory: bytes of tangents of the input at once. What the field's layers need beside is in proportion: its widest
            activation over the input's size, times this.
        shared: keyword arguments of the field that all samples have as they are.
        differentiable: the results carry gradients, where grad is enabled.
    """

    def __init__(
        self, probes: Tensor | None, *, chunk: int | None = None, memory: int = MEMORY, shared: dict[str, Any] | None = None,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        self.probes, self.differentiable = probes, differentiable
        self._chunk, self._memory, self._shared = chunk, memory, shared or {}
        self._products: Way | None = None

    @property
    def estimates(self) -> int:
        """How many independent traces each evaluation gives."""
        return 1 if self.probes is None else self.probes.shape[0]

    @property
    def engine(self) -> str:
        """What makes the products."""
        return "" if self._products is None else _NAMES[self._products.__name__]

    def __call__(self, net: Net, x: Tensor, time: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(output, traces [B, estimates] float64) at x [B, ...]; ``cond`` tensors that begin with B belong to the samples."""
        net = functools.partial(net, **self._shared) if self._shared else net
        traces: list[Tensor] = []
        out: Tensor | None = None
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            for first, tangents in self._tangents(x):
                out, products = self._evaluate(net, x, time, cond, tangents)
                if out.shape != x.shape or products.shape[1:] != x.shape:
                    raise ValueError(
                        f"the field's output has shape {list(out.shape)}, expected {list(x.shape)}"
                    )
                traces.append(self._reduce(first, tangents, products))
        if out is None:  # nothing to differentiate by
            out = net(x, time, **cond)
            return out, torch.zeros(x.shape[0], self.estimates, dtype=torch.float64, device=x.device)
        total = torch.stack(traces).sum(0) if self.probes is None else torch.cat(traces, 1)
        return out, total

    def _tangents(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, [k, ...] broadcastable to [k, B, ...]) of each chunk."""
        numel = x[:1].numel()
        if x.numel() == 0:
            return
        size = self._chunk or max(1, self._memory // (x.numel() * x.element_size()))
        count = numel if self.probes is None else self.probes.shape[0]
        for first in range(0, count, size):
            last = min(first + size, count)
            if self.probes is not None:
                yield first, self.probes[first:last].to(x.dtype)
                continue
            units = x.new_zeros(last - first, numel)
            units[:, first:last].fill_diagonal_(1.0)
            yield first, units.reshape(last - first, 1, *x.shape[1:])

    def _reduce(self, first: int, tangents: Tensor, products: Tensor) -> Tensor:
        """Sums in float64: [B, 1] for unit tangents, [B, k] for probes."""
        flat = products.flatten(2) if products.dim() > 2 else products[..., None]
        if self.probes is None:
            part = flat[..., first : first + len(tangents)]
            return part.diagonal(dim1=0, dim2=2).double().sum(1, keepdim=True)
        probes = tangents.reshape(flat.shape)
        return (probes.double() * flat.double()).sum(2).T

    def _evaluate(
        self, net: Net, x: Tensor, time: Tensor, cond: dict[str, Any], tangents: Tensor
    ) -> Products:
        known = self._products
        failures: dict[Way, Exception] = {}
        for way in (*(() if known is None else (known,)), *(way for way in _WAYS if way is not known)):
            try:
                result = way(net, x, time, cond, tangents)
            # A RuntimeError is what PyTorch says of an operator that has no such derivative.
            except (_NoDerivative, RuntimeError) as error:
                if _of_memory(error):
                    raise
                if "random operation" in str(error):  # vmap's refusal
                    raise ValueError(_RANDOM) from error
                if not failures:
                    _check_by_itself(net, x, time, cond)
                failures[way] = error
                continue
            self._products = way
            return result
        # Reverse mode asks least of the field: what it says is about the field itself.
        raise failures[_reverse] from next(iter(failures.values()))


class _NoDerivative(ValueError):
    """The field's output has no derivative in x."""


_DETACHED = (
    "field: its output carries no derivative in x, and yet changes with x: it leaves PyTorch on its way (NumPy, detach()); "
    "compute it with PyTorch's operators, or in a torch.autograd.Function with a backward pass"
)
_RANDOM = (
    "field: it draws random numbers, so two evaluations at one point differ, and it has no divergence: call eval() on a module "
    "with Dropout in training mode; draw the numbers of torch.rand before, and pass them by cond"
)


def _of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def _check_by_itself(net: Net, x: Tensor, time: Tensor, cond: dict[str, Any]) -> None:
    """Raises what the field raises without anything around it, and if its values at one point differ.

    Beyond rounding: sums of a device may come in any order.
    """
    with torch.no_grad():
        one, two = (net(x.detach(), time, **cond) for _ in range(2))
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(_RANDOM)


def _mapped(net: Net, x: Tensor, time: Tensor, cond: dict[str, Any], tangents: Tensor) -> Products:
    def product(tangent: Tensor) -> tuple[Tensor, Tensor]:
        tangents = (tangent.expand(x.shape),)
        pair = torch.func.jvp(lambda at: net(at, time, **cond), (x,), tangents, strict=True)
        return pair[0], pair[1]

    outs, products = torch.func.vmap(product)(tangents)
    return outs[0], products


def _repeated(net: Net, x: Tensor, time: Tensor, cond: dict[str, Any], tangents: Tensor) -> Products:
    count, batch = len(tangents), x.shape[0]

    def repeat(value: Tensor) -> Tensor:
        return torch.cat([value] * count) if value.dim() and value.shape[0] == batch else value

    with forward_ad.dual_level():
        tangent = tangents.expand(count, *x.shape).reshape(count * batch, *x.shape[1:])
        dual = forward_ad.make_dual(repeat(x), tangent)
        out, product = forward_ad.unpack_dual(net(dual, repeat(time), **map_tensors(cond, repeat)))
    if product is None:
        raise _NoDerivative(_DETACHED)
    return out[:batch], product.reshape(count, *x.shape)


def _reverse(net: Net, x: Tensor, time: Tensor, cond: dict[str, Any], tangents: Tensor) -> Products:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        out = net(at, time, **cond)
        if not out.requires_grad:
            raise _NoDerivative(_DETACHED)
        products = []
        for number, tangent in enumerate(tangents):
            (product,) = torch.autograd.grad(
                out, at, tangent.expand(x.shape).to(out.dtype), create_graph=differentiable,
                retain_graph=differentiable or number + 1 < len(tangents), allow_unused=True,
            )  # fmt: skip
            if product is None:
                raise _NoDerivative(_DETACHED)
            products.append(product)
    return (out if differentiable else out.detach()), torch.stack(products)


def _constant(net: Net, x: Tensor, time: Tensor, cond: dict[str, Any], tangents: Tensor) -> Products:
    """Of a field that does not use x, which is looked at anew in every evaluation: it may use x at another time."""
    out = net(x, time, **cond)
    with torch.no_grad():
        # Another shift for each element, so that no period or symmetry of the field is met by chance.
        shift = torch.arange(1, x.numel() + 1, dtype=torch.float64, device=x.device).sin().to(x.dtype)
        other = net(torch.nan_to_num(x.detach()) + shift.reshape(x.shape), time, **cond)
    if not torch.allclose(out.detach(), other, rtol=0.0, atol=0.0, equal_nan=True):
        raise _NoDerivative(_DETACHED)
    return out, x.new_zeros(()).expand(len(tangents), *x.shape)


_WAYS = (_mapped, _repeated, _reverse, _constant)
_NAMES = {
    "_mapped": "forward mode, vmap over tangents",
    "_repeated": "forward mode, batch repeated per tangent",
    "_reverse": "reverse mode, one backward pass per tangent",
    "_constant": "no products, the field does not depend on x",
}
