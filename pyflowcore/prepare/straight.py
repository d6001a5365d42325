"""A function of tensors as the straight line of operators that it runs: recorded once, run without the Python between.

A small model's operators take a few microseconds each, and so do the checks, attributes and views of the Python that calls
them. For one set of shapes the calls are always the same, so they are written down at the first evaluation and compiled to
a Python function of nothing but calls. Nothing is fused, reordered or decided again: the results have the same bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

__all__ = ["record", "signature", "transformed", "watched"]


def transformed() -> bool:
    """Whether a transform of torch.func, or a forward-mode derivative, is to see the model's own operators."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def watched(inputs: Sequence[Tensor | None] = ()) -> bool:
    """Whether something changes what a call of PyTorch does, or wants to see the model's own: a compiler, a transform,
    autocast, a mode (but for the default device), tensors of other kinds, a gradient of the inputs."""
    return (
        torch.compiler.is_compiling()
        or transformed()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch._C._len_torch_dispatch_stack() > 0
        or not torch._C._is_torch_function_enabled()
        or (
            torch._C._len_torch_function_stack() > 0
            and any(map(_changes, _get_current_function_mode_stack()))
        )
        or any(t is not None and type(t) is not Tensor for t in inputs)
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs))
    )


def _changes(mode: TorchFunctionMode) -> bool:
    return not isinstance(mode, (DeviceContext, _Recorder))


def signature(inputs: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What a recording is valid for: types, shapes, strides, dtypes and devices, and which inputs there are."""
    return tuple(None if t is None else (type(t), t.shape, t.stride(), t.dtype, t.device) for t in inputs)


# They ask about a tensor, and a signature settles the answer; data_ptr is asked by checks of overlap alone.
_FACTS = {
    "__get__", "size", "stride", "dim", "numel", "nelement", "element_size", "is_contiguous", "data_ptr", "is_floating_point",
    "is_complex", "is_inference", "is_same_size", "__len__", "ndimension", "get_device", "__repr__", "__format__", "__hash__",
}  # fmt: skip


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


class _Writer:
    """The text of the function, a line a call.

    Tensors are known by their addresses: those that come in, those that are made, and the rest, which are constants of the
    function, as are the operators. What is made is not held: recording takes the memory that the function takes.
    """

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        self.constants: dict[str, Any] = {}
        self.lines: list[str] = []
        self._last: dict[str, int] = {}
        self._names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        for i, tensor in enumerate(inputs):
            if tensor is not None:
                self._name(tensor, f"x{i}")

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The text of a call; to be taken before it runs, since it may write to its arguments' places in a list."""
        given = [self.expression(one) for one in args]
        given += [f"{name}={self.expression(one)}" for name, one in kwargs.items()]
        # Of an operator the builtin, without the layer of Python around it.
        builtin = func._op if isinstance(func, OpOverload) else func
        return f"{self._constant(builtin, 'f')}({', '.join(given)})"

    def add(self, called: str, result: Any) -> None:
        self.lines.append(f"{self._target(result)} = {called}")

    def expression(self, value: Any) -> str:
        if isinstance(value, Tensor):
            ref, name = self._names.get(id(value), (None, ""))
            if ref is None or ref() is not value:
                name = self._name(value, self._constant(value, "c"))
            self._last[name] = len(self.lines)
            return name
        if isinstance(value, (list, tuple)):
            inside = ", ".join(self.expression(one) for one in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if value else ''})"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        return self._constant(value, "v")  # dtypes, devices, slices, floats (whose inf has no literal)

    def function(self, inputs: int, result: Tensor) -> Callable[..., Tensor]:
        """All lines, each with the end of what it is the last to read: else a deep model would keep every activation."""
        answer, lines = self.expression(result), list(self.lines)
        for name, i in self._last.items():
            if name.startswith("t") and name != answer:
                lines[i] += f"; del {name}"
        # Constants as default arguments are locals: the fastest names that Python has.
        names = [*(f"x{i}" for i in range(inputs)), "*", *(f"{name}={name}" for name in self.constants)]
        body = "\n    ".join([*lines, f"return {answer}"])
        scope: dict[str, Any] = {}
        text = f"def line({', '.join(names)}):\n    {body}\n"
        exec(compile(text, "<recorded>", "exec"), dict(self.constants), scope)
        line: Callable[..., Tensor] = scope["line"]
        return line

    def _constant(self, value: Any, kind: str) -> str:
        name = f"{kind}{len(self.constants)}"
        self.constants[name] = value
        return name

    def _name(self, tensor: Tensor, name: str) -> str:
        self._names[id(tensor)] = weakref.ref(tensor), name
        return name

    def _target(self, result: Any) -> str:
        if isinstance(result, Tensor):
            name = self._name(result, f"t{len(self._last)}_{len(self.lines)}")
            self._last[name] = len(self.lines)
            return name
        if isinstance(result, (list, tuple)):
            return f"[{', '.join(self._target(one) for one in result)}]"
        return "_"


class _Recorder(TorchFunctionMode):
    """Every call of PyTorch that a function makes, in order. Calls are seen as they were written, F.linear and not the views
    and products that it is made of: one call from Python each."""

    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer
        self.asked = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.asked:
            return result
        if result is None or any(True for _ in _tensors(result)):
            self._writer.add(self._writer.call(func, args, kwargs), result)
        elif getattr(func, "__name__", "") not in _FACTS:
            # A number or a truth value, and nobody knows what follows from it.
            self.asked = True
        return result


def record(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None]
) -> tuple[Tensor, Callable[..., Tensor] | None]:
    """Runs ``function(*inputs)`` and writes down what it ran.

    Args:
        function: its operators must follow from the inputs' signature alone, and every tensor that it reads but does not make
            must be an input, or the same tensor for as long as the recording is used.
        inputs: tensors, all of them different, or None.

    Returns:
        (its result, the straight line, which answers the same for other inputs of this signature). None in place of the line
        where something was asked of a tensor that its signature does not settle, since what followed may hang on it.
    """
    writer = _Writer(inputs)
    recorder = _Recorder(writer)
    with recorder:
        result = function(*inputs)
    if recorder.asked or not writer.lines:
        return result, None
    return result, writer.function(len(inputs), result)
