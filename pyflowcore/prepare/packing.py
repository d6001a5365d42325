"""Packed: a reference model made ready for evaluation in some dtype."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.utils.parametrize import is_parametrized

from .products import Products
from .straight import record, signature, watched
from .weights import writes

__all__ = ["Evaluate", "Packed"]

# Recordings kept, one for each batch and number of branches; the oldest goes first.
MOST_LINES = 16

# (x [n, ...], row of the plan) -> the network's output, like x
Evaluate = Callable[[Tensor, int], Tensor]
Model = TypeVar("Model", bound=nn.Module)


def check_modules(model: nn.Module) -> None:
    """What is evaluated are the weights; so a layer of another kind, or a hook, would be passed over."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise TypeError(
                f"{name or 'model'} has a forward hook, which a prepared field would not call: remove it first"
            )
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not is_parametrized(module):
            plain = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
            if type(module) is not plain:
                raise TypeError(
                    f"{name} is a {type(module).__name__}, of which a prepared field would use the weight and bias alone; "
                    f"allowed is {plain.__name__}, or a parametrisation of it"
                )


class Packed(ABC, Generic[Model]):
    """The weights of a model in the dtype in which they are evaluated.

    Where that is the model's own the tensors are the model's, so a training step is seen at once; else they are copies. What
    ``products`` packs of them is made again where they were written, as a trajectory begins.

    Attributes:
        source: the model.
        model: what is evaluated: the model, or its copy in ``dtype``.
        conditions: the names of the conditions that the model takes.
        products: of the model's linear layers.
    """

    conditions: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def operators(self) -> tuple[str, ...]:
        """Of torch.ops.pyflowcore, those that run."""

    def __init__(self, source: Model, dtype: torch.dtype | None) -> None:
        self.source = source
        self._dtype = dtype
        self._marks: tuple[Any, ...] = ()
        self.model = source
        self.products = Products(source)
        self._lines: dict[Any, Callable[..., Tensor]] = {}
        self._kept: dict[str, Tensor] = {}
        self.refresh()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what the network computes."""
        return self._dtype or next(self.source.parameters()).dtype

    def refresh(self) -> None:
        """Takes the weights that the model has now, where they are copies.

        Raises:
            TypeError: naming a module that computes something else than its weights say.
        """
        check_modules(self.source)
        if all(p.dtype == self.dtype for p in self.source.parameters()):
            self.model = self.source
            self._renew()
            return
        with torch.inference_mode(False), torch.no_grad():
            made = copy.deepcopy(self.source)
            # Parameters alone: tables of angles and positions stay as exact as they are.
            for parameter in made.parameters():
                parameter.data = parameter.data.to(self.dtype)
            self.model = made.requires_grad_(False)
        self._renew()
        self._marks = self._written()

    def _renew(self) -> None:
        self.products = Products(self.model)
        self._forget()

    def stale(self) -> bool:
        """Whether the model's weights were written since they were copied."""
        return self.model is not self.source and self._marks != self._written()

    def _written(self) -> tuple[Any, ...]:
        return tuple((id(p), *writes(p)) for p in self.source.parameters())

    def start(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """:meth:`begin`, with the weights that the model has now."""
        # A compiler sees the weights themselves in its products, and nothing that was made of them.
        if not torch.compiler.is_compiling():
            self.follow()
        return self.begin(times, cond, n)

    def follow(self) -> None:
        """Forgets what was made of weights that were written, moved or replaced since."""
        changed = self.products.follow()
        if changed == "rebuilt":
            self.refresh()
        elif changed:
            self._forget()

    def straight(
        self, body: Callable[..., Tensor], inputs: Callable[[Tensor, int], Sequence[Tensor | None]]
    ) -> Evaluate:
        """``body(x, *inputs(x, row))`` as rows are evaluated, its operators recorded once for one set of shapes.

        Args:
            body: reads, besides its arguments, the model's weights and what is made of them alone.
            inputs: what else a row needs of the samples of x. For one shape of x always of the same signature.
        """
        lines: dict[Any, Callable[..., Tensor]] = {}
        # Of the weights as they are now: where they are written while this records, the others get another dict.
        known = self._lines

        def evaluate(x: Tensor, row: int) -> Tensor:
            given = [x, *inputs(x, row)]
            if self.products.weights.unseen or watched(given):
                return body(*given)
            own = x.shape, x.stride(), x.dtype
            line = lines.get(own)
            if line is not None:
                return line(*given)
            key = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), signature(given)
            line = known.get(key)
            if line is None:
                result, line = record(body, given)
                while len(known) >= MOST_LINES:
                    known.pop(next(iter(known)), None)
                known[key] = lines[own] = line or body
                return result
            lines[own] = line
            return line(*given)

        return evaluate

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that is made of the weights alone, once for all trajectories. To be made before the rows are recorded."""
        if self.products.weights.unseen or watched():
            return make()
        store = self._kept
        if name not in store:
            with DisableTorchFunction():
                store[name] = make()
        return store[name]

    def _forget(self) -> None:
        """What was made of the weights; in other dicts, since trajectories on other threads may still fill these."""
        self._lines, self._kept = {}, {}

    def held(self) -> tuple[Any, ...]:
        """All that evaluations read which is not the caller's: for who keeps their addresses, as a CUDA graph does."""
        return self.model, self._kept, self.products.kept_now()

    def __getstate__(self) -> dict[str, Any]:
        """Without recordings, which hold this model's tensors, and marks, which are addresses."""
        return self.__dict__ | {"_lines": {}, "_kept": {}, "_marks": self.stale(), "products": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.products = Products(self.model)
        self._marks = () if state["_marks"] else self._written()

    @abstractmethod
    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """What evaluates the network row by row; everything that hangs on time and condition alone is made here.

        Args:
            times: the network's, [rows], or [1, n]: one row in which every sample has a time of its own.
            cond: the conditions of all n samples (all branches), as the model takes them.
            n: samples; a row may be evaluated for the first few of them alone.
        """
