"""MATHS' third closed form in many dimensions: data that is a mixture of Gaussians, whose exact field is known, as a measure of
solvers at few evaluations. For tools/mixture_table.py (which writes docs/mixture.md) and its test.

Eight components with weights 1 to 8 (over 36). In 2 dimensions their means lie on a circle of radius 2; in 64 they are draws of
standard normals. Component k has the standard deviation 0.1 + 0.2 k / 7 in every coordinate. Means, starts and noise come
from seeds, so everything is the same on every machine.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import ndtr

import pyflowcore as pfc

COMPONENTS = 8
SAMPLES = 1024
# For distances between distributions, which the number of samples limits.
MANY = 16384
DIMENSIONS = (2, 64)
WEIGHTS = np.arange(1, COMPONENTS + 1) / (COMPONENTS * (COMPONENTS + 1) / 2)
DEVIATIONS = 0.1 + 0.2 * np.arange(COMPONENTS) / (COMPONENTS - 1)
# DOP853 keeps 13 stages of the state: a chunk of samples at a time stays in the cache.
_CHUNK = 64
# Products of a part at a time are too small for a BLAS to wake threads for them, which takes longer than they do.
_PART = 256


def normals(first, count, dimensions, stream):
    """Normals [count, dimensions] of the seeds from `first` on."""
    seeds = range(first, first + count)
    return pfc.randn(seeds, (dimensions,), stream=stream, dtype=torch.float64).numpy()


class Problem:
    """The mixture in `dimensions`; starts [SAMPLES, dimensions], where the exact flow takes them, and into which basin."""

    def __init__(self, dimensions):
        self.dimensions = dimensions
        if dimensions == 2:
            angle = 2.0 * np.pi * np.arange(COMPONENTS) / COMPONENTS
            self.means = 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        else:
            self.means = normals(0, COMPONENTS, dimensions, 9)
        # The first SAMPLES of them are those that the exact flow carries.
        self.starts = normals(100, MANY, dimensions, 0)
        net = lambda x, t: torch.from_numpy(self.velocity(x.numpy(), float(t)))  # noqa: E731
        self.field = pfc.Field(net, time_shape="scalar")

    def _posterior(self, x, t):
        """Probabilities of the components at x [N, d], and their variances at t."""
        variance = t * t * DEVIATIONS**2 + (1.0 - t) ** 2
        distance = (
            (x * x).sum(1)[:, None] - 2.0 * t * x @ self.means.T + t * t * (self.means * self.means).sum(1)
        )
        log_p = np.log(WEIGHTS) - 0.5 * self.dimensions * np.log(variance) - 0.5 * distance / variance
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True), variance

    def velocity(self, x, t):
        """E[x1 - x0 | x] = sum_k p_k (mu_k + g_k (x - t mu_k)), g_k = (t s_k^2 - (1 - t)) / v_k."""
        out = np.empty_like(x)
        for first in range(0, len(x), _PART):
            part = x[first : first + _PART]
            p, variance = self._posterior(part, t)
            g = (t * DEVIATIONS**2 - (1.0 - t)) / variance
            out[first : first + _PART] = p @ ((1.0 - t * g)[:, None] * self.means) + (p @ g)[:, None] * part
        return out

    def basins(self, x):
        """The component that most probably made a sample."""
        return self._posterior(x, 1.0)[0].argmax(1)

    @functools.cached_property
    def ends(self):
        """The exact flow of the starts, by DOP853 at 1e-12."""
        parts = []
        for first in range(0, SAMPLES, _CHUNK):
            part = self.starts[first : first + _CHUNK]
            flow = lambda t, y, shape=part.shape: self.velocity(y.reshape(shape), t).ravel()  # noqa: E731
            solved = solve_ivp(flow, (0.0, 1.0), part.ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
            parts.append(solved.y[:, -1].reshape(part.shape))
        return np.concatenate(parts)

    def sample(self, plan, count=SAMPLES):
        x0 = torch.from_numpy(self.starts[:count])
        return pfc.Sampler(plan)(self.field, x0=x0, seeds=range(count)).numpy()

    def score(self, plan):
        """Median and root mean square over the samples of their distance to the exact end, per root of the dimensions, and the
        share of them that end in another basin."""
        found = self.sample(plan)
        error = np.sqrt(((found - self.ends) ** 2).mean(1))
        switched = self.basins(found) != self.basins(self.ends)
        return float(np.median(error)), float(np.sqrt((error**2).mean())), float(switched.mean())

    def exact_draws(self, count=MANY):
        """Draws of the mixture itself."""
        level = ndtr(normals(0, count, 1, 10)[:, 0])
        component = np.searchsorted(np.cumsum(WEIGHTS)[:-1], level)
        noise = normals(10**6, count, self.dimensions, 9)
        return self.means[component] + DEVIATIONS[component, None] * noise

    @functools.cached_property
    def _projections(self):
        """Directions [32, d], and for each the cumulative distribution of the mixture's projection on a fine grid."""
        lines = normals(500, 32, self.dimensions, 9)
        lines /= np.linalg.norm(lines, axis=1, keepdims=True)
        made = []
        for line in lines:
            centres = self.means @ line
            grid = np.linspace(centres.min() - 2.0, centres.max() + 2.0, 4001)
            made.append((line, grid, ndtr((grid[:, None] - centres) / DEVIATIONS) @ WEIGHTS))
        return made

    def distance(self, x):
        """How far samples are from the mixture as distributions: the Wasserstein-1 distance of their projections, against the
        exact quantiles, averaged over 32 directions."""
        level = (np.arange(len(x)) + 0.5) / len(x)
        gaps = [
            np.abs(np.sort(x @ line) - np.interp(level, cdf, grid)) for line, grid, cdf in self._projections
        ]
        return float(np.mean(gaps))


@functools.cache
def problem(dimensions):
    return Problem(dimensions)
