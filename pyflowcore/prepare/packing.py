"""Packed: a reference model made ready for evaluation in some dtype."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .products import Products

__all__ = ["Evaluate", "Packed"]

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
        self.refresh()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what the network computes."""
        return self._dtype or next(self.source.parameters()).dtype

    def refresh(self) -> None:
        """Takes the weights that the model has now, where they are copies."""
        if all(p.dtype == self.dtype for p in self.source.parameters()):
            self.model = self.source
            self.products = Products(self.model)
            return
        with torch.inference_mode(False), torch.no_grad():
            made = copy.deepcopy(self.source)
            # Parameters alone: tables of angles and positions stay as exact as they are.
            for parameter in made.parameters():
                parameter.data = parameter.data.to(self.dtype)
            self.model = made.requires_grad_(False)
        self.products = Products(self.model)
        self._marks = self._written()

    def stale(self) -> bool:
        """Whether the model's weights were written since they were copied."""
        return self.model is not self.source and self._marks != self._written()

    def _written(self) -> tuple[tuple[int, int], ...]:
        return tuple((id(p), p._version) for p in self.source.parameters())

    def start(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """:meth:`begin`, with the weights that the model has now."""
        if not torch.compiler.is_compiling():  # its products are PyTorch's own, of the weights themselves
            self.products.follow()
        return self.begin(times, cond, n)

    @abstractmethod
    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        """What evaluates the network row by row; everything that hangs on time and condition alone is made here.

        Args:
            times: the network's, [rows], or [1, n]: one row in which every sample has a time of its own.
            cond: the conditions of all n samples (all branches), as the model takes them.
            n: samples; a row may be evaluated for the first few of them alone.
        """
