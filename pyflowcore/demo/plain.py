"""The demo's two samplers as one would write them without this library: the baseline of the table.

Eager PyTorch, guidance by one doubled batch, everything that does not change prepared outside the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Net = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def adams_bashforth2(
    net: Net, x: Tensor, labels: Tensor, null_class: int, scale: float, steps: int
) -> Tensor:
    """Second-order Adams-Bashforth on a velocity, uniform steps, Euler first: x [B, ...] at t = 0 -> t = 1."""
    doubled = torch.cat([labels, torch.full_like(labels, null_class)])
    dt, before = 1.0 / steps, None
    for step in range(steps):
        t = torch.full((2 * len(x),), step / steps, dtype=x.dtype)
        cond, uncond = net(torch.cat([x, x]), t, doubled).chunk(2)
        v = uncond + scale * (cond - uncond)
        x = x + dt * (v if before is None else 1.5 * v - 0.5 * before)
        before = v
    return x


@torch.no_grad()
def ddim(net: Net, x: Tensor, labels: Tensor, null_class: int, scale: float, steps: int) -> Tensor:
    """Deterministic DDIM (Song et al. 2021, equation 12, eta = 0) on a noise prediction, VP path, uniform times."""
    doubled = torch.cat([labels, torch.full_like(labels, null_class)])
    levels = [_vp(step / steps) for step in range(steps + 1)]
    for step in range(steps):
        (alpha, sigma), (alpha_next, sigma_next) = levels[step], levels[step + 1]
        t = torch.full((2 * len(x),), step / steps, dtype=x.dtype)
        cond, uncond = net(torch.cat([x, x]), t, doubled).chunk(2)
        noise = uncond + scale * (cond - uncond)
        data = (x - sigma * noise) / alpha
        x = alpha_next * data + sigma_next * noise
    return x


def _vp(t: float, beta_min: float = 0.1, beta_max: float = 20.0) -> tuple[float, float]:
    """alpha and sigma of the VP path at t (t = 1 is data)."""
    s = 1.0 - t
    log_alpha = -0.25 * s * s * (beta_max - beta_min) - 0.5 * s * beta_min
    return math.exp(log_alpha), math.sqrt(-math.expm1(2.0 * log_alpha))
