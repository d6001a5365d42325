"""Field: what a network predicts, said once, beside the network. Foreign conventions end here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _core, paths, predictions

__all__ = ["Field", "as_field"]

TimeMap = Callable[[Tensor], Any]

_TIME_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64)


class Field:
    """A network together with the facts that a sampler needs.

    Args:
        net: any callable ``net(x, t, **cond) -> Tensor`` of x's shape; a ``torch.nn.Module`` for instance.
        prediction: what it predicts: "velocity", "data", "noise", "score" or "v" (v = alpha noise - sigma data, Salimans &
            Ho 2022); ``pfc.EDM(sigma_data)`` for the raw network of an EDM denoiser; ``pfc.Scaled(name, in_scale)`` for one
            whose input is scaled.
        path: the path it was trained on: "linear", "trigonometric", "vp" or another of ``pfc.paths``, by name or object.
        sign: -1 if it predicts the negative of that, as networks do that were trained with time running from data to noise.
        time: the map from t (0 noise, 1 data; a float64 tensor) to the time that the network wants, for instance
            ``lambda t: 1000 * (1 - t)``. Computed in float64 and cast once, to the state's dtype. Default: what the prediction
            or the path says (EDM's c_noise, the timestep of ``pfc.paths.from_alphas_cumprod``), or else t itself.
        round_time: round the network's times to the nearest integer (half to even), for networks that were trained on integer
            timesteps. The plan keeps its own noise levels: where they should be those of the integers, give it a grid of
            such times (``path.times_of(timesteps)``).
        time_dtype: the dtype of the network's times: None (the state's), a float dtype, or ``torch.int64`` or ``torch.int32``
            for networks that look them up in a table, which need ``round_time=True`` unless the times are integers.
        time_shape: "batch" passes times [B], "scalar" one 0-dimensional tensor.
        dtype: the dtype of the network's input x. Default: the state's (float32). The state itself stays float32.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        prediction: predictions.AnyPrediction = "velocity",
        path: str | paths.Path = "linear",
        sign: int = 1,
        time: TimeMap | None = None,
        time_shape: str = "batch",
        dtype: torch.dtype | None = None,
        round_time: bool = False,
        time_dtype: torch.dtype | None = None,
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
        if not isinstance(round_time, bool):
            raise TypeError(f"round_time must be a bool, got {type(round_time).__name__}")
        if time_dtype not in _TIME_DTYPES:
            raise TypeError(
                f"time_dtype must be float32, float64, bfloat16, float16, int32, int64 or None, got {time_dtype}"
            )
        self.net = net
        self.prediction = predictions.get(prediction)
        self.path = paths.get(path)
        self.sign = int(sign)
        self.time = time
        self.time_shape = time_shape
        self.dtype = dtype
        self.round_time = round_time
        self.time_dtype = time_dtype

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The prediction at x [B, ...], a point of the path, and t [B] (0 noise, 1 data); sign, time map and the scaling of
        the input applied."""
        x = self._scaled(x, t)
        times = self.network_times(t.double(), x.dtype)
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
        mapped = self._default_times(t) if self.time is None else self.time(t.clone())
        if mapped is t and not self.round_time:
            return t
        if not isinstance(mapped, Tensor):
            mapped = torch.as_tensor(mapped, dtype=torch.float64)
        if mapped.shape != t.shape:
            raise ValueError(
                f"time must keep the shape {list(t.shape)} of the times, it returned {list(mapped.shape)}"
            )
        mapped = mapped.double()
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(mapped).all()):
            raise ValueError(
                "time returned values that are not finite"
                if self.time is not None
                else f"the network's time is not finite at t = {t[~torch.isfinite(mapped)].reshape(-1)[0]}"
            )
        return mapped.round() if self.round_time else mapped

    def network_times(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """:meth:`map_times`, cast once: to ``time_dtype``, or else to dtype."""
        return self.cast_times(self.map_times(t), dtype)

    def cast_times(self, mapped: Tensor, dtype: torch.dtype) -> Tensor:
        """What :meth:`map_times` made, cast."""
        wanted = self.time_dtype or dtype
        whole = (
            wanted.is_floating_point
            or torch.compiler.is_compiling()
            or bool((mapped == mapped.round()).all())
        )
        if not whole:
            first = mapped[mapped != mapped.round()].reshape(-1)[0]
            raise ValueError(
                f"time_dtype is {wanted}, but the network's time {float(first)} is not an integer: cutting it off would shift "
                "the noise level; ask for round_time=True, or give the plan a grid of integer timesteps"
            )
        return mapped.to(wanted)

    def _default_times(self, t: Tensor) -> Tensor:
        if isinstance(self.prediction, predictions.Prediction):
            mapped = self.prediction.network_times(self.path, t)
            if mapped is not None:
                return mapped
        mapped = self.path.network_times(t)
        return t if mapped is None else mapped

    def _scaled(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network is shown: x, times the factor of each sample's time."""
        if isinstance(self.prediction, str):
            return x
        path = self.path._core
        factors = [_core.ask(path, self.prediction, None, float(one))[1] for one in t.reshape(-1)]
        scale = torch.tensor(factors, dtype=x.dtype, device=x.device)
        return x * (scale if len(factors) == 1 else scale.reshape(-1, *[1] * (x.dim() - 1)))

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
