"""The paths in NumPy float64, with derivatives derived by hand here and not taken from csrc.

Every function takes a float or an array of times and returns (alpha, sigma, dalpha, dsigma).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

NAMES = ("linear", "trigonometric", "vp")
EVERY = (*NAMES, "polynomial", "linear_vp", "ve")


def linear(t):
    t = np.asarray(t, dtype=np.float64)
    return t, 1.0 - t, np.ones_like(t), -np.ones_like(t)


def trigonometric(t):
    angle = np.pi * np.asarray(t, dtype=np.float64) / 2
    # cos(pi t / 2) by the sine of the rest, which is exactly 0 at t = 1.
    cos = np.sin(np.pi * (1.0 - np.asarray(t, dtype=np.float64)) / 2)
    return np.sin(angle), cos, np.pi / 2 * cos, -np.pi / 2 * np.sin(angle)


def vp(t, beta_min=0.1, beta_max=20.0):
    """alpha = e^B with B = -s^2 (bmax - bmin)/4 - s bmin/2 and s = 1 - t, so dalpha = alpha dB/dt; sigma^2 = 1 - alpha^2,
    so sigma dsigma = -alpha dalpha."""
    s = 1.0 - np.asarray(t, dtype=np.float64)
    b = -0.25 * s**2 * (beta_max - beta_min) - 0.5 * s * beta_min
    db = 0.5 * s * (beta_max - beta_min) + 0.5 * beta_min
    alpha, sigma = np.exp(b), np.sqrt(-np.expm1(2 * b))
    with np.errstate(divide="ignore"):
        return alpha, sigma, alpha * db, -(alpha**2) * db / sigma


def polynomial(t, n=2):
    t = np.asarray(t, dtype=np.float64)
    return t**n, 1.0 - t**n, n * t ** (n - 1), -n * t ** (n - 1)


def linear_vp(t):
    t = np.asarray(t, dtype=np.float64)
    sigma = np.sqrt((1.0 - t) * (1.0 + t))
    with np.errstate(divide="ignore"):
        return t, sigma, np.ones_like(t), -t / sigma


def ve(t, sigma_max=80.0):
    t = np.asarray(t, dtype=np.float64)
    return np.ones_like(t), sigma_max * (1.0 - t), np.zeros_like(t), np.full_like(t, -sigma_max)


BY_NAME = {f.__name__: f for f in (linear, trigonometric, vp, polynomial, linear_vp, ve)}


def coefficients(name, t):
    return BY_NAME[name](t)


def log_snr(name, t):
    """lambda = log(alpha / sigma)."""
    alpha, sigma, _, _ = coefficients(name, t)
    return np.log(alpha / sigma)


def lambda_grid(name, steps, first=0.15, last=0.9):
    """Times uniform in lambda, from where lambda is that of the linear path at `first` to that at `last`."""
    values = np.linspace(log_snr("linear", first), log_snr("linear", last), steps + 1)
    if name == "linear":
        return 1 / (1 + np.exp(-values))
    if name == "trigonometric":
        return 2 / np.pi * np.arctan(np.exp(values))
    if name == "polynomial":
        return np.sqrt(1 / (1 + np.exp(-values)))
    if name == "linear_vp":
        return 1 / np.sqrt(1 + np.exp(-2 * values))
    if name == "ve":
        return 1 - np.exp(-values) / 80.0
    return np.array(
        [brentq(lambda t, v=v: log_snr(name, t) - v, 1e-6, 1 - 1e-9, xtol=1e-16, rtol=1e-15) for v in values]
    )
