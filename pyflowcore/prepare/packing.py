"""Packed: a reference model made ready for evaluation in some dtype."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .products import Products
from .straight import record, signature, watched

__all__ = ["Evaluate", "Packed"]

# Recordings kept, one for each batch and number of branches; the oldest goes first.
MOST_LINES = 16

# (x [n, ...], row of the plan) -> the network's output, like x
Evaluate = Callable[[Tensor, int], Tensor]
Model = TypeVar("Model", bound=nn.Module)


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
        self._marks: tuple[tuple[int, int], ...] = ()
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
        """Takes the weights that the model has now, where they are copies."""
        if all(p.dtype == self.dtype for p in self.source.parameters()):
            self.model = self.source
            self._forget()
            return
        with torch.inference_mode(False), torch.no_grad():
            made = copy.deepcopy(self.source)
            # Parameters alone: tables of angles and positions stay as exact as they are.
            for parameter in made.parameters():
                parameter.data = parameter.data.to(self.dtype)
            self.model = made.requires_grad_(False)
        self._forget()
        self._marks = self._written()

    def stale(self) -> bool:
        """Whether the model's weights were written since they were copied."""
        return self.model is not self.source and self._marks != self._written()

    def _written(self) -> tuple[tuple[int, int], ...]:
        return tuple((id(p), p._version) for p in self.source.parameters())

    def start(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """:meth:`begin`, with the weights that the model has now."""
        # A compiler sees the weights themselves in its products, and nothing that was made of them.
        if not torch.compiler.is_compiling() and self.products.follow():
            self._lines.clear()
            self._kept.clear()
        return self.begin(times, cond, n)

    def straight(
        self, body: Callable[..., Tensor], inputs: Callable[[Tensor, int], Sequence[Tensor | None]]
    ) -> Evaluate:
        """``body(x, *inputs(x, row))`` as rows are evaluated, its operators recorded once for one set of shapes.

        Args:
            body: reads, besides its arguments, the model's weights and what is made of them alone.
            inputs: what else a row needs of the samples of x. For one shape of x always of the same signature.
        """
        lines: dict[torch.Size, Callable[..., Tensor]] = {}

        def evaluate(x: Tensor, row: int) -> Tensor:
            given = [x, *inputs(x, row)]
            if watched():
                return body(*given)
            line = lines.get(x.shape)
            if line is not None:
                return line(*given)
            key = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), signature(given)
            found = self._lines.get(key)
            if found is None:
                result, found = record(body, given)
                while len(self._lines) >= MOST_LINES:
                    self._lines.pop(next(iter(self._lines)), None)
                self._lines[key] = lines[x.shape] = found or body
                return result
            lines[x.shape] = found
            return found(*given)

        return evaluate

    def _forget(self) -> None:
        """What was made of the weights."""
        self.products = Products(self.model)
        self._lines.clear()
        self._kept.clear()

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that is made of the weights alone, once for all trajectories. To be made before the rows are recorded."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def __getstate__(self) -> dict[str, Any]:
        """Without recordings: they hold this model's tensors."""
        return self.__dict__ | {"_lines": {}, "_kept": {}}

    @abstractmethod
    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """What evaluates the network row by row; everything that hangs on time and condition alone is made here.

        Args:
            times: the network's, [rows], or [1, n]: one row in which every sample has a time of its own.
            cond: the conditions of all n samples (all branches), as the model takes them.
            n: samples; a row may be evaluated for the first few of them alone.
        """
