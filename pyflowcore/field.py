"""Field: what a network predicts, said once, beside the network. Foreign conventions end here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import paths
from .ops.interpolate import prediction_kind

__all__ = ["Field", "as_field"]

TimeMap = Callable[[Tensor], Any]


class Field:
    """A network together with the facts that a sampler needs.

    Args:
        net: any callable ``net(x, t, **cond) -> Tensor`` of x's shape; a ``torch.nn.Module`` for instance.
        prediction: what it predicts: "velocity", "data", "noise", "score" or "v" (v = alpha noise - sigma data, Salimans &
            Ho 2022).
        path: the path it was trained on: "linear", "trigonometric", "vp" or another of ``pfc.paths``, by name or object.
        sign: -1 if it predicts the negative of that, as networks do that were trained with time running from data to noise.
        time: the map from t (0 noise, 1 data; a float64 tensor) to the time that the network wants, for instance
            ``lambda t: 1000 * (1 - t)``. Computed in float64 and cast once, to the state's dtype. Default: t itself.
        time_shape: "batch" passes times [B], "scalar" one 0-dimensional tensor.
        dtype: the dtype of the network's input x. Default: the state's (float32). The state itself stays float32.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        prediction: str = "velocity",
        path: str | paths.Path = "linear",
        sign: int = 1,
        time: TimeMap | None = None,
        time_shape: str = "batch",
        dtype: torch.dtype | None = None,
    ) -> None:
        if not callable(net):
            raise TypeError(f"net must be callable as net(x, t, **cond), got {type(net).__name__}")
        if isinstance(net, Field):
            raise TypeError(
                "net is a pfc.Field already: its facts would be lost; pass field.net with the facts that differ"
            )
        if sign not in (1, -1):
            raise ValueError(f"sign must be +1 or -1, got {sign!r}")
        if time is not None and not callable(time):
            raise TypeError(
                f"time must be a callable from t to the network's time, got {type(time).__name__}"
            )
        if time_shape not in ("batch", "scalar"):
            raise ValueError(f"time_shape must be 'batch' or 'scalar', got {time_shape!r}")
        if dtype not in (None, torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(f"dtype must be float32, float64, bfloat16, float16 or None, got {dtype}")
        prediction_kind(prediction)
        self.net = net
        self.prediction = prediction
        self.path = paths.get(path)
        self.sign = int(sign)
        self.time = time
        self.time_shape = time_shape
        self.dtype = dtype

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The prediction at x [B, ...] and t [B] (0 noise, 1 data), sign and time map applied."""
        times = self.map_times(t.double()).to(x.dtype)
        if self.time_shape == "scalar" and times.dim() > 0:
            if times.numel() > 1 and not bool((times == times[0]).all()):
                raise ValueError(
                    "t must be one time for the whole batch: the network takes a scalar (time_shape='scalar')"
                )
            times = times.reshape(-1)[0]
        out = self.net(x if self.dtype is None else x.to(self.dtype), times, **cond)
        return out if self.sign == 1 else -out

    def map_times(self, t: Tensor) -> Tensor:
        """Plan times, float64 of any shape, to the network's times, float64."""
        if self.time is None:
            return t
        mapped = self.time(t.clone())
        if not isinstance(mapped, Tensor):
            mapped = torch.as_tensor(mapped, dtype=torch.float64)
        if mapped.shape != t.shape:
            raise ValueError(
                f"time must keep the shape {list(t.shape)} of the times, it returned {list(mapped.shape)}"
            )
        mapped = mapped.double()
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(mapped).all()):
            raise ValueError("time returned values that are not finite")
        return mapped

    def device(self) -> torch.device | None:
        """The device of the network's first parameter, if it is a module that has any."""
        if isinstance(self.net, torch.nn.Module):
            for parameter in self.net.parameters():
                return parameter.device
        return None

    def __repr__(self) -> str:
        name = (
            type(self.net).__name__
            if isinstance(self.net, torch.nn.Module)
            else getattr(self.net, "__name__", "callable")
        )
        return f"Field({name}, prediction={self.prediction!r}, path={self.path!r}, sign={self.sign:+d})"


def as_field(field: Field | Callable[..., Tensor]) -> Field:
    """A field from itself or from a bare callable, which is a velocity on the linear path at identity time."""
    return field if isinstance(field, Field) else Field(field)
