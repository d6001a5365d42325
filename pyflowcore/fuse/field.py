"""FusedField: a field whose network the engines run in one kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import network, paths, predictions
from ..field import Field, TimeMap
from .adapters import discover
from .arguments import labels_of, module_of, names_of, shape_of, sizes_of
from .errors import CannotFuse
from .lowered import lowered, tensors_of
from .net import PRECISIONS, FusedNet

__all__ = ["FusedField", "fuse"]


class FusedField(Field):
    """A field whose network is packed for the engines. Made by :func:`pyflowcore.fuse`, which says what the arguments are.

    Its weights are those that the module had when it was fused; :meth:`refresh` takes new ones. Where a gradient is wanted
    (grad is enabled, and x, a condition or a parameter of the module requires it) a call runs the module itself, with the
    weights that it has then.

    Attributes:
        module: the original.
        network: layers, features and sizes (``pyflowcore.network.Network``).
        dim: elements of x.
        precision: "float32" (exact: that of the state's dtype), "tf32" or "bfloat16" (CUDA).
    """

    net: FusedNet

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[str] = ("x", "t"),
        *,
        sizes: Mapping[str, int] | None = None,
        labels: Sequence[str] = (),
        shape: Sequence[int] | None = None,
        prediction: predictions.AnyPrediction = "velocity",
        path: str | paths.Path = "linear",
        sign: int = 1,
        time: TimeMap | None = None,
        round_time: bool = False,
        precision: str = "float32",
    ) -> None:
        module = module_of(module)
        names = names_of(inputs)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        # Times travel in float64: the features of time are computed in it, and rounded once.
        super().__init__(
            _nothing, prediction, path, sign, time, round_time=round_time, time_dtype=torch.float64
        )
        calling, found = discover(
            module,
            names,
            sizes_of(sizes, names),
            labels_of(labels, names),
            shape_of(shape),
            self._some_times(),
        )
        self.net = FusedNet(module, calling, found, precision)

    def _some_times(self) -> Tensor:
        """Times that the network sees, to compare it with the module."""
        return self.map_times(torch.tensor([0.03, 0.2, 0.36, 0.5, 0.71, 0.97], dtype=torch.float64))

    @property
    def module(self) -> nn.Module:
        return self.net.module

    @property
    def network(self) -> network.Network:
        return self.net.lowered.network

    @property
    def dim(self) -> int:
        return self.network.dim

    @property
    def precision(self) -> str:
        return self.net.precision

    @property
    def layers(self) -> Tensor:
        """The network's table of layers, float64 on the CPU."""
        return self.net.lowered.layers

    @property
    def features(self) -> Tensor:
        """The network's table of features of time, float64 on the CPU."""
        return self.net.lowered.features

    def params(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The packed weights, float32 or float64; kept until :meth:`refresh`."""
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        return self.net.lowered.params(dtype, torch.empty(0, device=device).device)

    def condition(
        self, cond: Mapping[str, Any], batch: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """The network's conditions [batch, C] from the named ones; None for a network without any."""
        place = torch.device(device)
        return self.net.lowered.condition(self.net.given(cond, batch, place), dtype, place)

    def refresh(self) -> None:
        """Takes the weights that the module has now. Samplers that run meanwhile keep the old ones to their end.

        Raises:
            CannotFuse: if the module is another one by now: shapes changed, or it cannot be fused any more.
        """
        old = self.net.lowered
        now = {name: tuple(tensor.shape) for name, tensor in tensors_of(self.module).items()}
        was = {name: tuple(tensor.shape) for name, tensor in old.weights.items()}
        for name in sorted(now.keys() | was.keys()):
            if now.get(name) != was.get(name):
                raise CannotFuse(
                    name, f"its shape was {was.get(name)} when it was fused and is {now.get(name)} now: fuse the module anew",
                    allowed=False,
                )  # fmt: skip
        self.net.lowered = lowered(self.module, self.net.calling, self._some_times())

    def stale(self) -> bool:
        """Whether the module's weights differ from those in use. It compares values, so on a GPU it waits for the device."""
        return self.net.lowered.stale(self.module)

    def check_fresh(self) -> None:
        """For gradients through the packed network, which the module takes: they have to agree.

        Raises:
            RuntimeError: if the module's weights were written since they were packed.
        """
        if self.net.lowered.written(self.module) and self.stale():
            raise RuntimeError(
                "the module's weights changed since they were packed, so its gradient would be another function's: call the "
                "fused field's refresh() after every training step"
            )

    def device(self) -> torch.device | None:
        for parameter in self.module.parameters():
            return parameter.device
        return None

    def __repr__(self) -> str:
        net = self.network
        widths = " -> ".join(str(layer.weight.shape[0]) for layer in net.layers)
        return (
            f"FusedField({type(self.module).__name__}: x {net.dim}, features {len(net.features)}, conditions {net.conditions} "
            f"-> {widths}; prediction={self.prediction!r}, path={self.path!r}, sign={self.sign:+d}, precision={self.precision})"
        )


def _nothing(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("this field is not complete")


def fuse(
    module: nn.Module,
    inputs: Sequence[str] = ("x", "t"),
    *,
    sizes: Mapping[str, int] | None = None,
    labels: Sequence[str] = (),
    shape: Sequence[int] | None = None,
    prediction: predictions.AnyPrediction = "velocity",
    path: str | paths.Path = "linear",
    sign: int = 1,
    time: TimeMap | None = None,
    round_time: bool = False,
    precision: str = "float32",
) -> FusedField:
    """A small network as a field that the engines run in one kernel.

    Args:
        module: a ``models.MLP``, a ``models.ResMLP`` built with ``modulated=False``, an ``nn.Sequential``, or a module whose
            forward is made of Linear layers, activations, residual blocks, sines and cosines of the time, and constants that
            scale and shift. What it computes is read from one run of its forward, and compared with the module in float64 at
            random points.
        inputs: names of its inputs in the order in which it takes them: "x", "t" (0-dimensional, [B] or [B, 1], as it wants)
            and any conditions. A forward of one tensor gets them concatenated.
        sizes: elements of the conditions (and of x), where they do not follow from the layers.
        labels: names of conditions that are integers [B]; those that an ``nn.Embedding`` looks up are found by themselves.
        shape: of one x, for modules that take x as [B, *shape]. Default: a vector.
        prediction, path, sign, time, round_time: facts of the field, as :class:`pyflowcore.Field` takes them.
        precision: of the engines on CUDA: "float32", "tf32" or "bfloat16", the last two with float32 sums. The CPU has
            "float32" alone, which is exact in the state's dtype, and refuses others when it is asked to run them.

    Returns:
        A :class:`FusedField`, which :class:`pyflowcore.Sampler` and everything else that takes a field takes.

    Raises:
        CannotFuse: naming the part of the module that is of another kind, and what is allowed.
        TypeError, ValueError: naming the argument.
    """
    return FusedField(
        module, inputs, sizes=sizes, labels=labels, shape=shape, prediction=prediction, path=path, sign=sign, time=time,
        round_time=round_time, precision=precision,
    )  # fmt: skip
