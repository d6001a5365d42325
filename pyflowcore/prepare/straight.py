"""A function of tensors as the straight line of operators that it runs: recorded once, run without the Python between.

A small model's operators take a few microseconds each, and so do the checks, attributes and views of the Python that calls
them. For one set of shapes the calls are always the same, so they are written down at the first evaluation and compiled to
a Python function of nothing but calls. Nothing is fused, reordered or decided again: the results have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

__all__ = ["record", "signature", "transformed", "watched"]


def transformed() -> bool:
    """Whether a transform of torch.func, or a forward-mode derivative, is to see the model's own operators."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def watched() -> bool:
    """Whether a compiler, a transform or autocast changes what a call of PyTorch does."""
    return (
        torch.compiler.is_compiling()
        or transformed()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
    )


def signature(inputs: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What a recording is valid for: types, shapes, strides, dtypes and devices, and which inputs there are."""
    return tuple(None if t is None else (type(t), t.shape, t.stride(), t.dtype, t.device) for t in inputs)


# They ask about a tensor and answer with none, so a signature settles them.
_FACTS = {
    "__get__", "size", "stride", "dim", "numel", "nelement", "element_size", "storage_offset", "is_contiguous", "data_ptr",
    "is_floating_point", "is_complex", "is_inference", "__len__", "ndimension", "get_device", "__repr__", "__format__",
    "__hash__", "requires_grad_",
}  # fmt: skip
# They bring a value to the host.
_VALUES = {
    "item",
    "tolist",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "__array__",
}


class _Recorder(TorchFunctionMode):
    """Every call of PyTorch that a function makes, in order, with its result. Calls are seen as they were written, F.linear
    and not the views and products that it is made of: one call from Python each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.values = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        self.values |= name in _VALUES
        if name not in _FACTS:
            self.calls.append((func, args, kwargs or {}, result))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


class _Writer:
    """The text of the function. Tensors are named by identity: those that come in, those that are made, and the rest, which
    are constants of the function, as are the operators."""

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        self.constants: dict[str, Any] = {}
        self.names = {id(tensor): f"x{i}" for i, tensor in enumerate(inputs) if tensor is not None}
        self.made = 0

    def constant(self, value: Any, kind: str) -> str:
        name = f"{kind}{len(self.constants)}"
        self.constants[name] = value
        return name

    def expression(self, value: Any) -> str:
        if isinstance(value, Tensor):
            if id(value) not in self.names:
                self.names[id(value)] = self.constant(value, "c")
            return self.names[id(value)]
        if isinstance(value, (list, tuple)):
            inside = ", ".join(self.expression(one) for one in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if value else ''})"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        return self.constant(value, "v")  # dtypes, devices, floats (whose inf has no literal)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        given = [self.expression(one) for one in args]
        given += [f"{name}={self.expression(one)}" for name, one in kwargs.items()]
        # Of an operator the builtin, without the layer of Python around it.
        builtin = func._op if isinstance(func, OpOverload) else func
        return f"{self.constant(builtin, 'f')}({', '.join(given)})"

    def target(self, result: Any) -> str:
        """Names what a call answers."""
        if isinstance(result, Tensor):
            self.made += 1
            self.names[id(result)] = f"t{self.made}"
            return f"t{self.made}"
        if isinstance(result, (list, tuple)):
            return f"[{', '.join(self.target(one) for one in result)}]"
        return "_"


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
        where a tensor's value was asked for on the host, since what followed may hang on it.
    """
    recorder = _Recorder()
    with recorder:
        result = function(*inputs)
    if recorder.values:
        return result, None
    writer = _Writer(inputs)
    lines, last = [], {}
    for i, (func, args, kwargs, made) in enumerate(recorder.calls):
        called = writer.call(func, args, kwargs)
        for tensor in _tensors((*args, *kwargs.values())):
            last[writer.names[id(tensor)]] = i
        lines.append(f"{writer.target(made)} = {called}")
        for tensor in _tensors(made):
            last[writer.names[id(tensor)]] = i
    answer = writer.expression(result)
    # A tensor is let go after its last use, so that the allocator hands its memory to the next: else a deep model would keep
    # every activation.
    for name, i in last.items():
        if name.startswith("t") and name != answer:
            lines[i] += f"; del {name}"
    body = "\n    ".join([*lines, f"return {answer}"])
    text = f"def line({', '.join(f'x{i}' for i in range(len(inputs)))}):\n    {body}\n"
    scope: dict[str, Any] = {}
    # Constants as default arguments are locals: the fastest names that Python has.
    names = ", ".join(f"{name}={name}" for name in writer.constants)
    text = text.replace("):", f", *, {names}):" if names else "):", 1)
    exec(compile(text, "<recorded>", "exec"), dict(writer.constants), scope)
    line: Callable[..., Tensor] = scope["line"]
    return result, line
