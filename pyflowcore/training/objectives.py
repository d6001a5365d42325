"""Training losses. All of them are one regression: a network against a target of ``pyflowcore.interpolate``.

flow        x_t on the linear path, target the velocity x1 - x0     (Lipman et al. 2023, equation 23; CondOT)
diffusion   x_t on the VP path, target the noise x0                 (Ho et al. 2020, equation 14; Song et al. 2021)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import pyflowcore as pfc

from . import times as _times


@dataclass(frozen=True)
class Objective:
    """What a network learns to predict, on which path, at which times.

    path is a name or a ``pyflowcore.paths.Path``, prediction a name, as ``pyflowcore.Field`` takes them; times is
    "logit_normal" or "uniform".
    """

    path: str | pfc.paths.Path
    prediction: str
    times: str


FLOW = Objective(path="linear", prediction="velocity", times="logit_normal")
DIFFUSION = Objective(path="vp", prediction="noise", times="uniform")
_OBJECTIVES = {"flow": FLOW, "diffusion": DIFFUSION}


def get(objective: str | Objective) -> Objective:
    """The objective called "flow" or "diffusion"; an ``Objective`` is returned as it is.

    Raises:
        ValueError: for another name.
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in _OBJECTIVES:
        raise ValueError(f"objective must be one of {sorted(_OBJECTIVES)} or an Objective; got {objective!r}")
    return _OBJECTIVES[objective]


def regression_loss(
    net: Callable[..., Tensor],
    data: Tensor,
    seeds: Tensor,
    *,
    objective: str | Objective = "flow",
    draw: int = 0,
    **cond: Any,
) -> Tensor:
    """Mean squared error of ``net(x_t, t, **cond)`` against the objective's target: a scalar tensor.

    Args:
        net: the network, called once with x_t [B, ...] and t [B] in data's dtype.
        data: samples x1 [B, ...], float32 or float64.
        seeds: [B] int64; noise and time of sample i are functions of (seeds[i], draw).
        objective: "flow", "diffusion" or an ``Objective``.
        draw: a number that sets this call's noise apart from the next one's; a training loop gives the step.
        cond: conditions of the network, passed on.

    Raises:
        ValueError: if the network answers in another shape than data's.
    """
    objective = get(objective)
    t = _times.get(objective.times)(seeds, draw).to(device=data.device, dtype=data.dtype)
    pair = pfc.interpolate(
        data,
        t,
        seeds=seeds,
        path=objective.path,
        prediction=objective.prediction,
        stream=_times.NOISE_STREAM,
        draw=draw,
    )
    answer = net(pair.x_t, t, **cond)
    if answer.shape != data.shape:
        raise ValueError(f"net must answer in data's shape {list(data.shape)}; got {list(answer.shape)}")
    return F.mse_loss(answer, pair.target)


def flow_matching_loss(
    net: Callable[..., Tensor], data: Tensor, seeds: Tensor, *, draw: int = 0, **cond: Any
) -> Tensor:
    """Conditional flow matching on the linear path with logit-normal times; see ``regression_loss``."""
    return regression_loss(net, data, seeds, objective=FLOW, draw=draw, **cond)


def diffusion_loss(
    net: Callable[..., Tensor], data: Tensor, seeds: Tensor, *, draw: int = 0, **cond: Any
) -> Tensor:
    """Noise prediction on the VP path with uniform times; see ``regression_loss``."""
    return regression_loss(net, data, seeds, objective=DIFFUSION, draw=draw, **cond)
