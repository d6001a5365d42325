"""What tracing does with operations that only move elements: they run as they are, on the elements' names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .casts import target
from .traced import Context, Traced, as_constant, first_of, handles, lifted, want_embedding, want_labels

_METHODS = (
    "reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "expand", "expand_as",
    "repeat", "repeat_interleave", "tile", "broadcast_to", "permute", "transpose", "swapaxes", "swapdims", "movedim",
    "moveaxis", "t", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select", "index_select", "roll",
    "flip", "atleast_1d", "atleast_2d",
)  # fmt: skip


def _both(context: Context, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on samples and on atoms alike; a second traced tensor (view_as) stands for its shape."""

    def run(part: str) -> Any:
        own = [getattr(a, part) if isinstance(a, Traced) else a for a in args]
        named = {k: getattr(v, part) if isinstance(v, Traced) else v for k, v in kwargs.items()}
        if hasattr(Tensor, name):
            return getattr(Tensor, name)(*own, **named)
        return getattr(torch, name)(*own, **named)

    first = first_of((args, kwargs))
    assert first is not None
    samples, atoms = run("sample"), run("atom")
    if isinstance(samples, (tuple, list)):
        return tuple(context.make(s, a, first.dtype) for s, a in zip(samples, atoms, strict=True))
    return context.make(samples, atoms, first.dtype)


def _register(name: str) -> None:
    @handles(name)
    def move(context: Context, *args: Any, **kwargs: Any) -> Any:
        return _both(context, name, args, kwargs)


for _name in _METHODS:
    _register(_name)


@handles("getitem")
def _getitem(context: Context, value: Traced, index: Any) -> Traced:
    if first_of(index) is not None:
        raise context.refuse("an index that depends on data")
    return context.make(value.sample[index], value.atom[index], value.dtype)


@handles("get T", "get mT")
def _transposed(context: Context, value: Traced) -> Traced:
    return context.make(value.sample.mT, value.atom.mT, value.dtype)


@handles("get data")
def _data(context: Context, value: Traced) -> Traced:
    return value


def _join(name: str) -> None:
    function = getattr(torch, name)

    @handles(name)
    def join(context: Context, tensors: Any, *args: Any, **kwargs: Any) -> Traced:
        if any(isinstance(part, Traced) and part.is_label for part in tensors):
            raise want_embedding(context)
        parts = [lifted(context, part) for part in tensors]
        return context.make(
            function([part.sample for part in parts], *args, **kwargs),
            function([part.atom for part in parts], *args, **kwargs),
        )


for _name in ("cat", "concat", "concatenate", "hstack", "column_stack", "stack"):
    _join(_name)


@handles("broadcast_tensors")
def _broadcast(context: Context, *tensors: Any) -> tuple[Traced, ...]:
    parts = [lifted(context, part) for part in tensors]
    samples = torch.broadcast_tensors(*(part.sample for part in parts))
    atoms = torch.broadcast_tensors(*(part.atom for part in parts))
    return tuple(context.make(s, a) for s, a in zip(samples, atoms, strict=True))


@handles(
    "contiguous",
    "clone",
    "detach",
    "float",
    "double",
    "half",
    "bfloat16",
    "cpu",
    "cuda",
    "requires_grad",
    "alias",
    "pin_memory",
)
def _same(context: Context, value: Traced, *args: Any, **kwargs: Any) -> Traced:
    """Casts between float dtypes count for nothing: the fused network is computed in its own, float32 or float64."""
    return context.make(value.sample, value.atom, value.dtype)


def _to(context: Context, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = target(name, args, kwargs)
    if not isinstance(value, Traced):  # a constant, to the dtype of a traced tensor
        return value.to(torch.float64 if wanted is None or wanted.is_floating_point else wanted)
    if wanted is None or wanted.is_floating_point:
        return _same(context, value)
    if wanted.is_complex:
        raise context.refuse("complex numbers")
    if wanted in (torch.int32, torch.int64):
        return _long(context, value)
    raise context.refuse(f"a cast to {wanted}")


def _cast(name: str) -> None:
    @handles(name)
    def cast(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        return _to(context, name, value, args, kwargs)


for _name in ("to", "type", "type_as"):
    _cast(_name)


@handles("long", "int")
def _long(context: Context, value: Traced) -> Traced:
    if value.is_label:
        return value
    raise want_labels(context, value, "a cast to integers")


def _constant(name: str) -> None:
    @handles(name)
    def make(context: Context, value: Traced, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("device", None)
        if first_of((args, kwargs)) is not None:
            raise context.refuse(f"{name} of a value that depends on data")
        real = torch.empty(value.shape, dtype=value.dtype)
        function = getattr(torch, name) if name.endswith("like") else getattr(Tensor, name)
        return as_constant(context, function(real, *args, **kwargs))


for _name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor"):
    _constant(_name)
