"""interpolate: a point on the path and the network's target there, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _core, _library, paths
from .randn import randn, seeds_tensor

_library.define(
    "interpolate(Tensor data, Tensor t, Tensor? x0, Tensor? seeds, int path, float path_a, float path_b, int prediction, "
    "int stream, int draw) -> (Tensor, Tensor)"
)

_NUMBERS = {name: int(kind) for name, kind in _core.Prediction.__members__.items()}
PREDICTIONS = tuple(_NUMBERS)


class Interpolated(NamedTuple):
    """x_t and what a network of the asked prediction should say there; each of data's shape and dtype."""

    x_t: Tensor
    target: Tensor


def prediction_kind(prediction: str, name: str = "prediction") -> _core.Prediction:
    """The core's number of a prediction; refuses unknown names."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"{name}: unknown name {prediction!r}, allowed are {', '.join(PREDICTIONS)}")
    return _core.Prediction.__members__[prediction]


def interpolate(
    data: Tensor,
    t: Tensor,
    *,
    x0: Tensor | None = None,
    seeds: Iterable[int] | Tensor | None = None,
    path: str | paths.Path = "linear",
    prediction: str = "velocity",
    stream: int = 3,
    draw: int = 0,
) -> Interpolated:
    """x_t = alpha(t) data + sigma(t) x0 and the target of a prediction, for training.

    The path and its derivatives are evaluated in float64 from t inside the kernel; noise comes from x0, or is drawn from the
    seeds without ever being stored. Differentiable in data and x0 (not in t).

    Args:
        data: x1, [B, ...], float32, float64, bfloat16 or float16.
        t: [B], float32 or float64, in [0, 1]; a time outside gives NaN.
        x0: the noise, as data; or
        seeds: one integer per sample: x0 is then ``randn(seeds, ..., stream=stream, draw=draw)``.
        path: "linear", "trigonometric", "vp" or another of ``pfc.paths``, by name or object. Of a path that only the host knows
            (custom, table, from_alphas_cumprod) the coefficients are computed there, in float64, from a copy of t; the rest
            is plain torch.
        prediction: "velocity" alpha' x1 + sigma' x0 (Lipman et al. 2023), "data" x1, "noise" x0 (Ho et al. 2020),
            "score" -x0 / sigma (Song et al. 2021), "v" alpha x0 - sigma x1 (Salimans & Ho 2022).

    Returns:
        (x_t, target). Where a target does not exist (the score at sigma = 0, the VP velocity at t = 1) it is not finite.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not agree; both or neither of x0 and seeds.
    """
    if not data.is_floating_point():
        raise TypeError(f"data must be floating point, got {data.dtype}")
    if data.dim() < 1:
        raise ValueError("data must have a batch dimension, got a scalar")
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"t must be float32 or float64, got {t.dtype}")
    if t.shape != data.shape[:1]:
        raise ValueError(f"t must have shape [{data.shape[0]}], got {list(t.shape)}")
    if (x0 is None) == (seeds is None):
        raise ValueError(
            f"exactly one of x0 and seeds must be given, got {'neither' if x0 is None else 'both'}"
        )
    if x0 is not None:
        if x0.shape != data.shape:
            raise ValueError(f"x0 has shape {list(x0.shape)}, data has {list(data.shape)}")
        if x0.dtype != data.dtype:
            raise TypeError(f"x0 is {x0.dtype}, data is {data.dtype}")
    seed_values = None if seeds is None else seeds_tensor(seeds, data.device)
    if seed_values is not None and seed_values.shape != data.shape[:1]:
        raise ValueError(f"seeds has {seed_values.shape[0]} entries, data has {data.shape[0]} samples")
    for name, tensor in (("t", t), ("x0", x0)):
        if tensor is not None and tensor.device != data.device:
            raise ValueError(f"{name} is on {tensor.device}, data is on {data.device}")
    if prediction not in _NUMBERS:
        prediction_kind(prediction)
    code = (on := paths.get(path)).code
    if code is None:
        return _on_host(data, t, x0, seed_values, on, prediction, stream, draw)
    kind, first, second = code
    return Interpolated(
        *torch.ops.pyflowcore.interpolate(
            data, t, x0, seed_values, kind, first, second, _NUMBERS[prediction], stream, draw
        )
    )


def _on_host(
    data: Tensor, t: Tensor, x0: Tensor | None, seeds: Tensor | None, path: paths.Path, prediction: str, stream: int, draw: int
) -> Interpolated:  # fmt: skip
    """The same for a path whose formula no kernel knows."""
    times = t.detach().cpu().double().numpy()
    inside = (times >= 0.0) & (times <= 1.0)
    values = path.coefficients(np.where(inside, times, 0.5))
    mixture = _core.mixtures(_core.Prediction.__members__[prediction], *values)
    compute = data.dtype if data.dtype in (torch.float32, torch.float64) else torch.float32
    if x0 is None:
        assert seeds is not None  # one of the two is given
        x0 = randn(seeds, data.shape[1:], dtype=compute, stream=stream, draw=draw)

    def column(values: np.ndarray) -> Tensor:
        column = torch.from_numpy(np.where(inside, values, np.nan)).to(device=data.device, dtype=compute)
        return column.reshape(-1, *[1] * (data.dim() - 1))

    alpha, sigma, towards_data, towards_noise = (column(v) for v in (*values[:2], *mixture))
    x1, noise = data.to(compute), x0.to(compute)
    x_t, target = alpha * x1 + sigma * noise, towards_data * x1 + towards_noise * noise
    return Interpolated(x_t.to(data.dtype), target.to(data.dtype))


@torch.library.register_fake("pyflowcore::interpolate", lib=_library.definitions)
def _fake(data: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    like = torch.empty(data.shape, dtype=data.dtype, device=data.device)
    return like, torch.empty_like(like)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, t, x0, *_ = inputs
    ctx.save_for_backward(t)
    ctx.options = inputs[4:8]
    ctx.noise_given = x0 is not None
    # An output that nobody used must not meet a coefficient that is infinite.
    ctx.set_materialize_grads(False)


# Targets that do not depend on the data, or not on the noise.
_NO_DATA = (_NUMBERS["noise"], _NUMBERS["score"])
_NO_NOISE = (_NUMBERS["data"],)


def _backward(ctx: Any, grad_x_t: Tensor | None, grad_target: Tensor | None) -> tuple[Tensor | None, ...]:
    """Both outputs are linear in data and x0, so the operator itself gives its transpose: with x0 = 0 it multiplies by the
    coefficients of the data, with data = 0 by those of the noise."""
    (t,) = ctx.saved_tensors
    prediction = ctx.options[3]

    def against(data_side: bool) -> Tensor | None:
        total: Tensor | None = None
        for index, grad in ((0, grad_x_t), (1, grad_target)):
            if grad is None or (index == 1 and prediction in (_NO_DATA if data_side else _NO_NOISE)):
                continue
            grad = grad.contiguous()
            pair = (grad, torch.zeros_like(grad)) if data_side else (torch.zeros_like(grad), grad)
            part = torch.ops.pyflowcore.interpolate(pair[0], t, pair[1], None, *ctx.options, 0, 0)[index]
            total = part if total is None else total + part
        return total

    grad_data = against(True) if ctx.needs_input_grad[0] else None
    grad_noise = against(False) if ctx.noise_given and ctx.needs_input_grad[2] else None
    return grad_data, None, grad_noise, None, None, None, None, None, None, None


torch.library.register_autograd(
    "pyflowcore::interpolate", _backward, setup_context=_setup, lib=_library.definitions
)
