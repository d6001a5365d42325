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


class Mixture:
    """Data sum_k w_k N(mu_k, s^2 I) in d dimensions, mu [K, d], in torch, so that the field has a gradient in x and t.

    `of(prediction)` gives net(x, t) on the linear or the trigonometric path; the formulas are those of fields.py.
    """

    def __init__(self, mu, s, w=None, path="linear"):
        self.mu, self.s, self.path = torch.as_tensor(mu, dtype=torch.float64), float(s), path
        count = len(self.mu)
        self.w = torch.as_tensor([1.0 / count] * count if w is None else w, dtype=torch.float64)

    def schedule(self, t):
        if self.path == "linear":
            return t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
        angle = torch.pi / 2 * t
        return angle.sin(), angle.cos(), torch.pi / 2 * angle.cos(), -torch.pi / 2 * angle.sin()

    def of(self, prediction):
        def net(x, t):
            alpha, sigma, dalpha, dsigma = self.schedule(t.reshape(-1, 1).to(x.dtype))
            mu, w = self.mu.to(x.dtype), self.w.to(x.dtype)
            v = alpha**2 * self.s**2 + sigma**2
            away = x[:, None] - alpha[:, None] * mu
            p = torch.softmax(w.log() - away.square().sum(-1) / (2 * v), dim=1)[..., None]
            # E[x1 | x] and E[x0 | x] by Gaussian conditioning.
            data = (p * (mu + (alpha * self.s**2 / v)[:, None] * away)).sum(1)
            noise = (p * (sigma / v)[:, None] * away).sum(1)
            if prediction == "velocity":
                return dalpha * data + dsigma * noise
            if prediction == "data":
                return data
            if prediction == "noise":
                return noise
            return alpha * noise - sigma * data  # "v"

        return net


def ring(count=8, radius=2.0, s=0.3, path="linear"):
    """Gaussians on a circle in the plane."""
    angle = torch.arange(count, dtype=torch.float64) * (2 * torch.pi / count)
    return Mixture(torch.stack([angle.cos(), angle.sin()], 1) * radius, s, path=path)


def five(path="linear"):
    """Five Gaussians of unequal weights, without symmetry."""
    mu = [[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.5], [0.7, 0.9], [0.2, -0.4]]
    return Mixture(mu, 0.25, [0.3, 0.2, 0.2, 0.2, 0.1], path)
