"""Exact fields in closed form: data that is a mixture of Gaussians (one of them, or a point, included), on any path.

With x_t = alpha x1 + sigma x0 and component k of the data N(mu_k, s_k^2), x_t is a mixture of N(alpha mu_k, v_k) with
v_k = alpha^2 s_k^2 + sigma^2; the posterior means of x1 and x0 follow by Gaussian conditioning. Nothing divides by sigma.
"""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp

from . import paths

PREDICTIONS = ("velocity", "data", "noise", "score", "v")


class Mixture:
    """Data sum_k w_k N(mu_k, s_k^2), elementwise. `of(prediction)` gives f(x, t)."""

    def __init__(self, path, mu, s, w=(1.0,)):
        self.path = path
        self.mu, self.s, self.w = (np.asarray(v, dtype=np.float64) for v in (mu, s, w))

    def means(self, x, t):
        """E[x1 | x_t = x] and E[x0 | x_t = x]."""
        alpha, sigma, _, _ = paths.coefficients(self.path, t)
        v = alpha**2 * self.s**2 + sigma**2
        z = np.asarray(x)[..., None] - alpha * self.mu
        log_p = np.log(self.w) - 0.5 * np.log(v) - z**2 / (2 * v)
        p = np.exp(log_p - log_p.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return (p * (self.mu + alpha * self.s**2 / v * z)).sum(-1), (p * sigma * z / v).sum(-1)

    def of(self, prediction):
        def field(x, t):
            alpha, sigma, dalpha, dsigma = paths.coefficients(self.path, t)
            data, noise = self.means(x, t)
            if prediction == "velocity":
                return dalpha * data + dsigma * noise
            if prediction == "data":
                return data
            if prediction == "noise":
                return noise
            if prediction == "score":
                return -noise / sigma
            return alpha * noise - sigma * data

        return field

    def flow(self, x, start, end):
        """The exact flow map, by DOP853."""
        velocity = self.of("velocity")
        options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
        return solve_ivp(lambda t, y: velocity(y, t), (start, end), x, **options).y[:, -1]


def gaussian(path, mean=0.8, std=0.5):
    return Mixture(path, [mean], [std])


def gaussian_everywhere(path, prediction, mean=0.8, std=0.5):
    """The field of Gaussian data with its limits at t = 0 and t = 1, where a path's own numbers may be infinite."""

    def field(x, t):
        alpha, sigma, dalpha, dsigma = paths.coefficients(path, t)
        # sigma' is infinite at t = 1 on the paths with alpha^2 + sigma^2 = 1; sigma sigma' is -alpha alpha' there.
        slope = sigma * dsigma if np.isfinite(dsigma) else -alpha * dalpha
        z = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        if prediction == "velocity":
            return dalpha * mean + (alpha * dalpha * std**2 + slope) * z
        if prediction == "score":
            return -z
        data, noise = mean + alpha * std**2 * z, sigma * z
        return {"data": data, "noise": noise, "v": alpha * noise - sigma * data}[prediction]

    return field


def gaussian_flow(path, x, start, end, mean=0.8, std=0.5):
    """The flow map of Gaussian data in closed form: x' = alpha' m + sqrt(v'/v) (x - alpha m)."""
    a0, s0, _, _ = paths.coefficients(path, start)
    a1, s1, _, _ = paths.coefficients(path, end)
    return a1 * mean + np.sqrt((a1**2 * std**2 + s1**2) / (a0**2 * std**2 + s0**2)) * (x - a0 * mean)
