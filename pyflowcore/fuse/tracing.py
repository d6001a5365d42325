"""Tracing: a copy of the module in float64 runs once on tensors without values, and leaves a tape."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import activations, by_hand, operations, shapes  # the handlers of torch functions
from .calling import Calling
from .casts import target
from .errors import CannotFuse, WantsLabels, WantsSize
from .tape import Tape
from .traced import Context, Traced

__all__ = ["InFloat64", "check_buffers", "double_copy", "trace"]

_HANDLERS = (activations, by_hand, operations, shapes)


def double_copy(module: nn.Module) -> nn.Module:
    """The module in float64 on the CPU, with the tensors that it holds as plain attributes."""
    try:
        found = copy.deepcopy(module)
    except Exception as error:
        raise CannotFuse("the module", f"it cannot be copied: {error}", allowed=False) from error
    for name, tensor in [*found.named_parameters(), *found.named_buffers()]:
        if tensor.is_complex():
            raise CannotFuse(
                name, f"its dtype is {tensor.dtype}; complex numbers cannot be fused", allowed=False
            )
    found = found.to(device="cpu", dtype=torch.float64).requires_grad_(False)
    for part in found.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                cast = value.detach().to("cpu")
                setattr(part, name, cast.double() if cast.is_floating_point() else cast)
    return found


def check_buffers(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuses a module whose forward wrote its buffers: a fused network is the same at every call."""
    now = dict(module.named_buffers())
    for name, was in before.items():
        tensor = now.get(name)
        if tensor is not None and not isinstance(tensor, Traced) and _same(tensor, was):
            continue
        training = module.get_submodule(name.rpartition(".")[0]).training
        raise CannotFuse(
            name,
            "forward writes this buffer, and a fused network is the same at every call"
            + (": if that is a matter of training, call the module's eval() first" if training else ""),
            allowed=False,
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """The same values, NaN where NaN is."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


class InFloat64(TorchFunctionMode):
    """While it lasts, casts of float64 tensors to another float dtype or device do nothing: many modules round the time to
    float32 to make its sines, which is a fact about how they compute, not about what. Casts to integers are done."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("to", "float", "half", "bfloat16", "type", "type_as") and isinstance(args[0], Tensor):
            value = args[0]
            if value.dtype == torch.float64 and not isinstance(value, Traced):
                wanted = target(name, args[1:], kwargs)
                if wanted.is_floating_point if wanted is not None else name == "to":  # or to a device alone
                    return value
        return func(*args, **kwargs)


@contextmanager
def _named(module: nn.Module, context: Context) -> Iterator[None]:
    """While it lasts, the context knows which part of the module is running."""
    handles: list[Any] = []
    for name, part in module.named_modules():
        title = f"{name or 'the module'} ({type(part).__name__})"

        def enter(_: nn.Module, args: Any, title: str = title) -> None:
            context.stack.append(title)

        def leave(_: nn.Module, args: Any, out: Any) -> None:
            context.stack.pop()

        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch(module: nn.Module, calling: Calling) -> int:
    """A batch that is unlike every size in the module, so that none is taken for another."""
    sizes = {size for p in (*module.parameters(), *module.buffers()) for size in p.shape}
    sizes |= {*calling.shape, calling.dim, *(size for _, size in calling.sizes)}
    return next(
        n for n in (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, *range(101, 2000)) if n not in sizes
    )


def trace(module: nn.Module, calling: Calling, guessed: tuple[str, ...] = ()) -> tuple[Tape, Tensor]:
    """The tape of a module in float64, and the atoms of its output, flat.

    Raises:
        CannotFuse: naming the part; WantsLabels, WantsSize: an input is to be traced otherwise.
    """
    tape = Tape()
    context = Context(tape, guessed)
    context.names = {
        id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    batch = _batch(module, calling)

    def given(
        kind: str, shape: tuple[int, ...], name: str = "", dtype: torch.dtype = torch.float64
    ) -> Traced:
        atoms = tape.add(kind, torch.Size(shape).numel(), "the inputs", name=name).reshape(shape)
        sample = torch.arange(batch).reshape(-1, *[1] * len(shape)).expand(batch, *shape)
        return context.make(sample.clone(), atoms.expand(batch, *shape).clone(), dtype)

    # In the order features, conditions, x; a network's first layer reads them so.
    t = given("time", ())
    if calling.time == "scalar":
        t = context.make(torch.tensor(-1), t.atom[0])
    elif calling.time == "column":
        t = t[:, None]  # type: ignore[assignment]
    conditions: dict[str, Tensor] = {
        name: given("labels", (), name, torch.int64)
        if name in calling.labels
        else given("condition", (calling.size(name),), name)
        for name in calling.conditions
    }
    x = given("x", calling.shape, "x")
    with _named(module, context), torch.no_grad(), InFloat64():
        try:
            out = calling(module, x, t, conditions)
        except (CannotFuse, WantsLabels, WantsSize):
            raise
        except Exception as error:
            raise CannotFuse(
                context.where,
                f"forward failed while it was followed, with {_shapes(calling)}{_guesses(context)}: {type(error).__name__}: "
                f"{error}",
                allowed=False,
                by_shapes=True,
            ) from error
    return tape, _output(context, out, calling, batch)


def _shapes(calling: Calling) -> str:
    times = {"batch": "[B]", "column": "[B, 1]", "scalar": "[]"}
    found = {"x": _listed("B", *calling.shape), "t": times[calling.time]}
    for name in calling.conditions:
        found[name] = "[B]" if name in calling.labels else _listed("B", calling.size(name))
    return ", ".join(f"{name} {found[name]}" for name in calling.inputs)


def _guesses(context: Context) -> str:
    names = sorted(context.guessed)
    return f" (guessed: {', '.join(names)}; sizes= says what they are)" if names else ""


def _listed(*shape: object) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _output(context: Context, out: Any, calling: Calling, batch: int) -> Tensor:
    if not isinstance(out, Traced):
        what = (
            type(out).__name__
            if not isinstance(out, Tensor)
            else "a tensor that does not depend on the inputs"
        )
        raise CannotFuse("the module", f"forward returned {what}, a tensor like x is wanted", allowed=False)
    if out.dim() < 1 or out.shape[0] != batch or out[0].numel() != calling.dim:
        if "x" in context.guessed and out.dim() == 2 and out.shape[0] == batch:
            raise WantsSize("x", out.shape[1])
        got = _listed(*("B" if n == batch else n for n in out.shape))
        raise CannotFuse(
            "the module",
            f"forward returned {got} for x {_listed('B', *calling.shape)}: "
            "a field returns x's shape (sizes= or shape= say what x is)",
            allowed=False,
        )
    sample, atom = out.sample.reshape(batch, -1), out.atom.reshape(batch, -1)
    own = torch.arange(batch)[:, None]
    if bool(((sample != own) & (sample >= 0)).any()) or bool((atom != atom[:1]).any()):
        raise CannotFuse("the module", "forward mixes the samples of a batch", allowed=False)
    return atom[0]
