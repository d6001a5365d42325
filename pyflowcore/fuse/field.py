"""FusedField: a field whose network the engines run in one kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import network, paths, predictions
from ..field import Field, TimeMap
from .calling import Calling
from .errors import CannotFuse
from .fusing import discover
from .lowered import Lowered, lowered, weights_of

__all__ = ["PRECISIONS", "FusedField", "fuse"]

PRECISIONS = ("float32", "tf32", "bfloat16")  # by their numbers for the operators


class FusedNet:
    """The network of a fused field, as a callable ``net(x, times, **cond)``: what a Field wants of a network."""

    def __init__(self, module: nn.Module, calling: Calling, found: Lowered, precision: str) -> None:
        self.module, self.calling, self.lowered, self.precision = module, calling, found, precision

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.dim() < 1 or (x.shape[0] and x[0].numel() != self.calling.dim):
            raise ValueError(f"x must have {self.calling.dim} elements a sample, got {list(x.shape)}")
        if t.dim() > 1 or (t.dim() == 1 and len(t) not in (1, len(x))):
            raise ValueError(f"t must be [{len(x)}] or one time for all, got {list(t.shape)}")
        given = self.given(cond, len(x), x.device)
        if self._differentiable(x, t, given):
            return self._by_module(x, t, given)
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        if self.precision != "float32" and x.device.type != "cuda":
            raise ValueError(
                f"precision={self.precision!r} is for CUDA; x is on {x.device}, where the arithmetic is that of x's dtype "
                "(precision='float32')"
            )
        state = self.lowered
        out = network.forward(
            x.to(dtype), t.expand(len(x)), state.condition(given, dtype, x.device), state.params(dtype, x.device),
            state.layers, state.features,
        )  # fmt: skip
        return out.to(x.dtype)

    def given(self, cond: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The named conditions as [B, size] and labels [B]."""
        names, defaults = self.calling.conditions, dict(self.calling.defaults)
        if extra := sorted(set(cond) - set(names)):
            known = ", ".join(names) or "none"
            raise TypeError(f"the fused field takes no condition {', '.join(extra)}; its conditions: {known}")
        found = {}
        for name in names:
            value = cond.get(name)
            if value is None:
                if name not in defaults:
                    raise TypeError(f"condition {name} is missing")
                value = torch.tensor(defaults[name], device=device)
            found[name] = self._one(name, torch.as_tensor(value), batch)
        return found

    def _one(self, name: str, value: Tensor, batch: int) -> Tensor:
        if name in self.calling.labels:
            if value.is_floating_point() or value.dtype == torch.bool:
                raise TypeError(f"{name} must be integer labels, got {value.dtype}")
            if value.numel() not in (1, batch) or value.dim() > 2:
                raise ValueError(f"{name} must hold one label a sample, [{batch}], got {list(value.shape)}")
            value = value.reshape(-1).long().expand(batch)
            most = min(
                len(block.table)
                for block in self.lowered.conditions
                if block.name == name and block.table is not None
            )
            if (
                value.device.type == "cpu"
                and batch
                and not (int(value.min()) >= 0 and int(value.max()) < most)
            ):
                raise ValueError(
                    f"{name} must be labels from 0 to {most - 1}, got {int(value.min())} to {int(value.max())}"
                )
            return value
        size = self.calling.size(name)
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        if value.dim() == 1 and size == 1 and len(value) == batch:
            return value[:, None]
        if value.dim() < 2 or value.shape[0] not in (1, batch) or value[0].numel() != size:
            raise ValueError(f"{name} must be [{batch}, {size}], got {list(value.shape)}")
        return value.reshape(value.shape[0], size).expand(batch, size)

    # ------------------------------------------------------------------------------------------------------ gradients
    def _differentiable(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> bool:
        """Whether somebody may want a gradient: then the module itself has to run."""
        if torch._C._are_functorch_transforms_active():
            return True
        tensors = (x, t, *given.values())
        if any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            return True
        return torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*tensors, *self.module.parameters())
        )

    def _by_module(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        """The module itself, in x's dtype."""
        calling, batch = self.calling, len(x)
        shaped = x.reshape(batch, *calling.shape)
        cast = {name: v if name in calling.labels else v.to(x.dtype) for name, v in given.items()}
        times = t.to(x.dtype).expand(batch)
        if calling.time != "scalar":
            return self._run(shaped, calling.shaped_time(times), cast).reshape(x.shape)
        if t.dim() == 0 or bool((times == times[:1]).all()):
            return self._run(shaped, times[0] if batch else t.to(x.dtype), cast).reshape(x.shape)
        raise ValueError("t must be one time for the whole batch: the module takes a scalar")

    def _run(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        floating = {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}
        if all(tensor.dtype == x.dtype for tensor in floating.values()):
            return self.calling(self.module, x, t, given)
        cast = {name: tensor.to(x.dtype) for name, tensor in floating.items()}
        arguments = (self.module, x, t, given)
        return torch.func.functional_call(_Called(self.calling, self.module), _under(cast), arguments[1:])


class _Called(nn.Module):
    """A module that is called as it wants."""

    def __init__(self, calling: Calling, module: nn.Module) -> None:
        super().__init__()
        self.calling, self.module = calling, module

    def forward(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.calling(self.module, x, t, given)


def _under(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in named.items()}


class FusedField(Field):
    """A field whose network is packed for the engines. Made by :func:`pyflowcore.fuse`, which says what the arguments are.

    Its weights are those that the module had when it was fused; :meth:`refresh` takes new ones. Where a gradient is wanted (grad
    is enabled, and x, a condition or a parameter of the module requires it) a call runs the module itself, with the weights
    that it has then.

    Attributes:
        module: the original.
        network: layers, features and sizes (``pyflowcore.network.Network``).
        dim: elements of x.
        precision: "float32" (exact: that of the state's dtype), "tf32" or "bfloat16" (CUDA).
    """

    net: FusedNet  # type: ignore[assignment]

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
        module = _module(module)
        names = _names(inputs)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        # Times travel in float64: the features of time are computed in it, and rounded once.
        super().__init__(
            _nothing, prediction, path, sign, time, round_time=round_time, time_dtype=torch.float64
        )
        calling, found = discover(
            module, names, _sizes(sizes, names), _labels(labels, names), _shape(shape), self._some_times()
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
        now = {name: tuple(tensor.shape) for name, tensor in weights_of(self.module).items()}
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
        now = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        was = self.net.lowered.weights
        if now.keys() != was.keys():
            return True
        return any(
            tensor.shape != was[name].shape or not torch.equal(tensor.detach().to(was[name]), was[name])
            for name, tensor in now.items()
        )

    def device(self) -> torch.device | None:
        for parameter in self.module.parameters():
            return parameter.device
        return None

    def __repr__(self) -> str:
        net = self.network
        widths = " -> ".join(str(layer.weight.shape[0]) for layer in net.layers)
        return (
            f"FusedField({type(self.module).__name__}: x {net.dim}, features {len(net.features)}, conditions {net.conditions} -> "
            f"{widths}; prediction={self.prediction!r}, path={self.path!r}, sign={self.sign:+d}, precision={self.precision})"
        )


def _nothing(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("this field is not complete")


def _module(module: nn.Module) -> nn.Module:
    if isinstance(module, Field):
        raise TypeError(
            "module is a pfc.Field already: fuse its network, field.net, and give fuse the facts that it says"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    original = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if isinstance(original, torch.jit.ScriptModule):
        raise CannotFuse(
            "the module",
            "it is a TorchScript module; give fuse the module that it was made from",
            allowed=False,
        )
    return original


def _names(inputs: Sequence[str]) -> tuple[str, ...]:
    if isinstance(inputs, str) or not all(isinstance(name, str) for name in inputs):
        raise TypeError(f"inputs must be the names of the module's inputs, ('x', 't', ...), got {inputs!r}")
    names = tuple(inputs)
    if "x" not in names or len(set(names)) != len(names):
        raise ValueError(f"inputs must name x once, and no name twice, got {names}")
    return names


def _sizes(sizes: Mapping[str, int] | None, names: tuple[str, ...]) -> dict[str, int]:
    found = dict(sizes or {})
    for name, size in found.items():
        if name not in names or name == "t":
            raise ValueError(f"sizes has {name!r}, which is no vector of inputs {names}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"sizes[{name!r}] must be a positive integer, got {size!r}")
    return found


def _labels(labels: Sequence[str], names: tuple[str, ...]) -> tuple[str, ...]:
    found = (labels,) if isinstance(labels, str) else tuple(labels)
    for name in found:
        if name not in names or name in ("x", "t"):
            raise ValueError(f"labels has {name!r}, which is no condition of inputs {names}")
    return found


def _shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    found = tuple(shape)
    if not found or not all(isinstance(n, int) and n > 0 for n in found):
        raise ValueError(f"shape must be the shape of one x, positive integers, got {shape!r}")
    return found


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
        module: a ``models.MLP``, an ``nn.Sequential``, or a module whose forward is made of Linear layers, activations, residual
            blocks, sines and cosines of the time, and constants that scale and shift. What it computes is read from one run of
            its forward, and compared with the module in float64 at random points.
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
