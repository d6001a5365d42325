"""The samplers that draw noise as papers write them: a loop, no table, on any path.

`means(x, t)` gives E[x1 | x] and E[x0 | x]; `draw(n)` is noise n. x may be any vector: the coefficients of [1, start, noise
0, noise 1, ...] for instance, which makes mean and variance on Gaussian data exact numbers.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import brentq

from . import paths


def diffusion(name, path):
    """w(t) of a name, from its definition."""

    def ratio(t):
        alpha, sigma, _, _ = paths.coefficients(path, t)
        return sigma / alpha

    return {
        "constant": lambda t: 1.0,
        "sigma": lambda t: paths.coefficients(path, t)[1],
        "sigma/alpha": ratio,
        "cosine": lambda t: (np.cos(np.pi * t) + 1) ** 2 / 4,
        "sine": lambda t: np.sin(np.pi * t) ** 2,
    }[name]


def drift(means, path, w, x, t):
    """v + w/2 score, with score = -E[x0 | x] / sigma."""
    _, sigma, dalpha, dsigma = paths.coefficients(path, t)
    data, noise = means(x, t)
    return dalpha * data + dsigma * noise - 0.5 * w(t) * noise / sigma


def euler_maruyama(means, path, x, times, draw, diffusion="sigma"):
    w = globals()["diffusion"](diffusion, path)
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        h = end - t
        x = x + h * drift(means, path, w, x, t) + np.sqrt(w(t) * h) * draw(i)
    return x


def stochastic_heun(means, path, x, times, draw, diffusion="sigma"):
    w = globals()["diffusion"](diffusion, path)
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        h, now = end - t, drift(means, path, w, x, t)
        if end == 1.0:
            x = x + h * now + np.sqrt(w(t) * h) * draw(i)
            continue
        noisy = x + 0.5 * (np.sqrt(w(t)) + np.sqrt(w(end))) * np.sqrt(h) * draw(i)
        x = noisy + 0.5 * h * (now + drift(means, path, w, noisy + h * now, end))
    return x


def dpmpp_2m_sde(means, path, x, times, draw, eta=1.0):
    """Lu et al. 2022, eq. 18, the noise scaled by eta."""
    with np.errstate(divide="ignore"):
        lam = [paths.log_snr(path, t) for t in times]
    before = None
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        (_, sigma, _, _), (alpha1, sigma1, _, _) = paths.coefficients(path, t), paths.coefficients(path, end)
        h, data = lam[i + 1] - lam[i], means(x, t)[0]
        d = data
        if before is not None and np.isfinite(h) and np.isfinite(lam[i - 1]):
            d = data + h / (2 * (lam[i] - lam[i - 1])) * (data - before)
        x = sigma1 / sigma * np.exp(-eta * h) * x - alpha1 * np.expm1(-(1 + eta) * h) * d
        x = x + sigma1 * np.sqrt(-np.expm1(-2 * eta * h)) * draw(i)
        before = data
    return x


def time_at(value, wanted):
    """The time where a monotone function of t has the wanted value."""
    return brentq(lambda t: float(value(t)) - wanted, 1e-12, 1.0, xtol=1e-16, rtol=1e-15)


def euler_ancestral(means, path, x, times, draw, eta=1.0):
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        _, sigma, _, _ = paths.coefficients(path, t)
        alpha1, sigma1, _, _ = paths.coefficients(path, end)
        down = sigma1 * (1 + eta * (sigma1 / sigma - 1))
        t_down = 1.0 if sigma1 == 0 else time_at(lambda u: paths.coefficients(path, u)[1], down)
        alpha_down, down, _, _ = paths.coefficients(path, t_down)
        data, noise = means(x, t)
        back = alpha1 / alpha_down
        x = back * (alpha_down * data + down * noise)
        x = x + np.sqrt(max(0.0, sigma1**2 - (back * down) ** 2)) * draw(i)
    return x


def consistency(means, path, x, times, draw):
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        alpha, sigma, _, _ = paths.coefficients(path, end)
        x = alpha * means(x, t)[0] + sigma * draw(i)
    return x


def edm_heun(means, path, x, times, draw, s_churn=0.0, s_min=0.0, s_max=np.inf, s_noise=1.0):
    """Karras et al. 2022, algorithm 2, on x / alpha with rho = sigma / alpha in the place of sigma."""

    def ratio(t):
        alpha, sigma, _, _ = paths.coefficients(path, t)
        with np.errstate(divide="ignore"):
            return sigma / alpha

    for i, (t, end) in enumerate(itertools.pairwise(times)):
        alpha = paths.coefficients(path, t)[0]
        alpha1, sigma1, _, _ = paths.coefficients(path, end)
        rho, rho1 = ratio(t), ratio(end)
        if not np.isfinite(rho):
            data, noise = means(x, t)
            x = alpha1 * data + sigma1 * noise
            continue
        if s_churn > 0 and s_min <= rho <= s_max:
            t_hat = time_at(ratio, rho * (1 + min(s_churn / (len(times) - 1), np.sqrt(2) - 1)))
            alpha_hat = paths.coefficients(path, t_hat)[0]
            x = alpha_hat * (x / alpha + np.sqrt(ratio(t_hat) ** 2 - rho**2) * s_noise * draw(i))
            t, alpha, rho = t_hat, alpha_hat, ratio(t_hat)
        slope = means(x, t)[1]
        scaled = x / alpha + (rho1 - rho) * slope
        if rho1 > 0:
            slope = 0.5 * (slope + means(alpha1 * scaled, end)[1])
            scaled = x / alpha + (rho1 - rho) * slope
        x = alpha1 * scaled
    return x


BY_NAME = {
    f.__name__: f
    for f in (euler_maruyama, stochastic_heun, dpmpp_2m_sde, euler_ancestral, consistency, edm_heun)
}


class GaussianMoments:
    """Data N(mean, std^2), states as coefficient vectors of [1, start, noise 0, noise 1, ...]."""

    def __init__(self, path, draws, mean=0.8, std=0.5):
        self.path, self.mean, self.std, self.unit = path, mean, std, np.eye(2 + draws)

    def means(self, x, t):
        alpha, sigma, _, _ = paths.coefficients(self.path, t)
        centred = (x - alpha * self.mean * self.unit[0]) / (alpha**2 * self.std**2 + sigma**2)
        return self.mean * self.unit[0] + alpha * self.std**2 * centred, sigma * centred

    def velocity(self, x, t):
        _, _, dalpha, dsigma = paths.coefficients(self.path, t)
        data, noise = self.means(x, t)
        return dalpha * data + dsigma * noise

    def exact(self, t):
        """Mean and variance of x_t."""
        alpha, sigma, _, _ = paths.coefficients(self.path, t)
        return np.array([alpha * self.mean, alpha**2 * self.std**2 + sigma**2])

    def start(self, t):
        mean, variance = self.exact(t)
        return mean * self.unit[0] + np.sqrt(variance) * self.unit[1]

    def draw(self, n):
        return self.unit[2 + n]

    @staticmethod
    def of(x):
        return np.array([x[0], (x[1:] ** 2).sum()])
