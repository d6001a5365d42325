"""Traced: a tensor without values that knows what each of its elements is; a module's forward runs on it as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import CannotFuse, WantsLabels
from .tape import Tape

__all__ = ["Context", "Traced", "context_of", "first_of"]

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}  # by the name of the torch function; operations.py and shapes.py fill it

_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "get_device", "element_size", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "is_inference", "is_tensor", "is_conj", "is_neg", "is_same_size",
    "result_type", "has_names", "__len__", "__hash__",
}  # fmt: skip
_GETTERS = {
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf", "itemsize", "nbytes", "names",
    "is_cpu", "is_cuda", "is_mps", "is_xpu", "is_meta", "is_sparse", "is_nested", "is_quantized", "is_mkldnn",
}  # fmt: skip
_BY_VALUE = {
    "__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__", "item", "tolist", "numpy", "is_nonzero",
    "allclose", "equal",
}  # fmt: skip


class Context:
    """One run of a module: the tape, which part of the module is running, and which sizes are guesses."""

    def __init__(self, tape: Tape, guessed: Sequence[str] = ()) -> None:
        self.tape = tape
        self.stack: list[str] = []
        self.guessed = set(guessed)
        self.names: dict[int, str] = {}  # of the module's parameters and buffers, by their id

    @property
    def where(self) -> str:
        return self.stack[-1] if self.stack else "the module"

    def refuse(self, what: str, *, allowed: bool = True, by_shapes: bool = False) -> CannotFuse:
        return CannotFuse(self.where, what, allowed=allowed, by_shapes=by_shapes)

    def make(self, sample: Tensor, atom: Tensor, dtype: torch.dtype = torch.float64) -> Traced:
        return Traced(self, sample, atom, dtype)


class Traced(torch.Tensor):
    """Each element is an atom of the tape (``atom``) of one sample (``sample``; -1: of all samples alike)."""

    context: Context
    sample: Tensor
    atom: Tensor

    @staticmethod
    def __new__(cls, context: Context, sample: Tensor, atom: Tensor, dtype: torch.dtype) -> Traced:
        made = torch.Tensor._make_wrapper_subclass(cls, atom.shape, dtype=dtype, device=torch.device("cpu"))
        made.context, made.sample, made.atom = context, sample, atom
        return made

    def __init__(self, *args: object) -> None:
        super().__init__()

    @property
    def is_label(self) -> bool:
        return self.dtype == torch.int64

    def become(self, other: Traced) -> Traced:
        """What an operation in place leaves."""
        if other.shape != self.shape:
            raise self.context.refuse("an operation in place that changes the shape")
        self.sample, self.atom = other.sample, other.atom
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(func.__self__, "__name__", name)
            if name in _GETTERS:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            name = f"get {name}"
        elif name in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        context = context_of((args, kwargs))
        if name in _BY_VALUE:
            raise context.refuse(
                f"a decision or a number by the values of a tensor ({name}): control flow that depends on data"
            )
        in_place = name.endswith("_") and not name.endswith("__")  # x += y comes as add_
        plain = name.rstrip("_") if in_place else name.strip("_")
        if plain not in HANDLERS:
            raise context.refuse(f"{_title(func, name)} is not a part of a small network")
        if in_place and not isinstance(args[0], Traced):
            raise context.refuse(f"{_title(func, name)} writes traced values into another tensor")
        if kwargs.pop("out", None) is not None:
            raise context.refuse(f"{_title(func, name)} with out=")
        found = HANDLERS[plain](context, *args, **kwargs)
        return args[0].become(found) if in_place else found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise context_of((args, kwargs or {})).refuse(f"{func} is not a part of a small network")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Traced{list(self.shape)}"


def _title(func: Any, name: str) -> str:
    module = getattr(func, "__module__", None) or ""
    return f"{module}.{name}" if module.startswith("torch.nn") else name


def first_of(value: Any) -> Traced | None:
    if isinstance(value, Traced):
        return value
    children = (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    )
    return next((found for child in children if (found := first_of(child)) is not None), None)


def context_of(value: Any) -> Context:
    found = first_of(value)
    assert found is not None
    return found.context


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler ``handler(context, *args, **kwargs)`` for torch functions and methods of these names."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def as_constant(context: Context, value: Any) -> Tensor:
    """A number or a tensor of the module, float64."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise context.refuse("complex numbers")
        found = value.detach().to(device="cpu", dtype=torch.float64)
    elif isinstance(value, complex):
        raise context.refuse("complex numbers")
    else:
        found = torch.tensor(float(value), dtype=torch.float64)
    if not bool(found.isfinite().all()):
        if name := context.names.get(id(value)):
            raise CannotFuse(name, "it has values that are not finite", allowed=False)
        raise context.refuse("a constant with values that are not finite", allowed=False)
    return found


def lifted(context: Context, value: Any) -> Traced:
    """A traced tensor as it is; of a constant one whose elements are atoms of the tape."""
    if isinstance(value, Traced):
        if value.is_label:
            raise want_embedding(context)
        return value
    constant = as_constant(context, value)
    values, inverse = constant.reshape(-1).unique(return_inverse=True)
    atoms = context.tape.add("constant", len(values), context.where, bias=values)
    atom = atoms[inverse].reshape(constant.shape)
    return context.make(torch.full_like(atom, -1), atom)


def want_embedding(context: Context) -> CannotFuse:
    return context.refuse("arithmetic with integer labels; they can only be looked up in an nn.Embedding")


def want_labels(context: Context, value: Traced, what: str) -> Exception:
    """Integers are wanted: if a condition gives them, it is to be traced as labels."""
    roots = context.tape.roots(value.atom.reshape(-1))
    names = {group.name for group in roots if group.kind == "condition"}
    if len(names) == 1 and len(names) == len({group.kind for group in roots}):
        return WantsLabels(names.pop())
    return context.refuse(f"{what} of values that are no condition's")


def paired(context: Context, a: Tensor, b: Tensor) -> Tensor:
    """The sample of each element of a result of two."""
    if bool(((a != b) & (a >= 0) & (b >= 0)).any()):
        raise context.refuse("an operation between different samples of the batch")
    return torch.where(a < 0, b, a)


def distinct(code: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct elements in the order in which they come first, and the place of each element among them."""
    values, inverse = code.reshape(-1).unique(return_inverse=True)
    first = torch.full((len(values),), inverse.numel()).scatter_reduce(
        0, inverse, torch.arange(inverse.numel()), "amin"
    )
    order = first.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return values[order], place[inverse].reshape(code.shape)
