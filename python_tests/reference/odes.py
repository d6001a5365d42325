"""Initial value problems for adaptive solves: as torch fields on batches, and as NumPy functions of one sample for SciPy."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp


@dataclass(frozen=True)
class Problem:
    field: Any  # (x [B, n], t [B], **cond) -> [B, n]
    x0: torch.Tensor
    end: float
    cond: dict[str, torch.Tensor]

    def alone(self, i):
        """f(t, y) of sample i."""
        cond = {name: value[i : i + 1] for name, value in self.cond.items()}

        def f(t, y):
            return self.field(torch.from_numpy(y)[None], torch.tensor([t], dtype=torch.float64), **cond)[
                0
            ].numpy()

        return f

    def scipy(self, i, method, tolerance, times=None):
        """The end of sample i (or its states at times, transposed) and the evaluations that SciPy took."""
        found = solve_ivp(
            self.alone(i),
            (0.0, self.end),
            self.x0[i].numpy(),
            method=method,
            rtol=tolerance,
            atol=tolerance,
            t_eval=times,
        )
        return (found.y[:, -1] if times is None else found.y.T), found.nfev

    @functools.cached_property
    def ends(self):
        return np.stack([self.scipy(i, "DOP853", 1e-13)[0] for i in range(len(self.x0))])


def van_der_pol(x, t, mu):
    a, b = x.unbind(1)
    return torch.stack([b, mu * (1 - a * a) * b - a], 1)


def lorenz(x, t):
    a, b, c = x.unbind(1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - (8 / 3) * c], 1)


def kepler(x, t):
    a, b, u, v = x.unbind(1)
    cube = (a * a + b * b) * torch.sqrt(a * a + b * b)
    return torch.stack([u, v, -a / cube, -b / cube], 1)


def mixture(x, t):
    """The exact field of five Gaussians in the plane, on the linear path, one sample at a time in sums of fixed order."""
    mu = torch.tensor([[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.5], [0.7, 0.9], [0.2, -0.4]], dtype=x.dtype)
    weight = torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1], dtype=x.dtype)
    variance = t * t * 0.25**2 + (1 - t) ** 2
    away = [x - t[:, None] * m for m in mu]
    logs = [
        w.log() - (d[:, 0] ** 2 + d[:, 1] ** 2) / (2 * variance) for w, d in zip(weight, away, strict=True)
    ]
    most = logs[0]
    for log in logs[1:]:
        most = torch.maximum(most, log)
    p = [(log - most).exp() for log in logs]
    total = p[0] + p[1] + p[2] + p[3] + p[4]
    gain = (t * 0.25**2 - (1 - t)) / variance
    out = torch.zeros_like(x)
    for q, m, d in zip(p, mu, away, strict=True):
        out = out + (q / total)[:, None] * (m + gain[:, None] * d)
    return out


@functools.cache
def problems():
    double = torch.float64
    mu = torch.tensor([0.5, 1.0, 2.0, 5.0, 10.0, 20.0], dtype=double)
    generator = torch.Generator().manual_seed(0)
    eccentric = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=double)
    zero = torch.zeros_like(eccentric)
    orbit = torch.stack([1 - eccentric, zero, zero, ((1 + eccentric) / (1 - eccentric)).sqrt()], 1)
    return {
        "van der Pol": Problem(
            van_der_pol, torch.tensor([[2.0, 0.0]], dtype=double).repeat(6, 1), 5.0, {"mu": mu}
        ),
        "Lorenz": Problem(lorenz, torch.randn(3, 3, generator=generator, dtype=double) * 5 + 10, 1.0, {}),
        "Kepler": Problem(kepler, orbit, 6.0, {}),
        "mixture": Problem(mixture, torch.randn(12, 2, generator=generator, dtype=double), 1.0, {}),
    }
