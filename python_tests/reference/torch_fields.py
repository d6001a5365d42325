"""Turns NumPy fields f(x, t) into networks for a Sampler."""

from __future__ import annotations

import torch


def as_net(field):
    """net(x, t) that evaluates a NumPy field in float64 and returns x's dtype."""

    def net(x, t):
        value = field(x.detach().to(torch.float64).numpy(), float(t.reshape(-1)[0]))
        return torch.as_tensor(value, dtype=torch.float64).to(x.dtype)

    return net


def drift(x, t):
    """An elementwise velocity that mixes nothing: the same bits for a sample in any batch."""
    t = t.reshape(-1, *[1] * (x.dim() - 1)) if t.dim() else t
    return x * (t - 0.7) + 0.3 * t
