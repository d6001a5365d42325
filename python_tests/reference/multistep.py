"""The deterministic solvers as papers write them, without a table: loops over given times in either direction, on any path.

A problem gives `velocity(x, t)` and `means(x, t)`, which is E[x1 | x] and E[x0 | x]. With start="single" the first steps are
Runge-Kutta steps in t, one fewer than the order, and their predictions serve the steps after them.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq

from pyflowcore import _core

from . import paths

TABLEAUS = {entry["name"]: entry for entry in _core.tableaus()}
STARTS = {2: "midpoint", 3: "heun3", 4: "rk4"}


def runge_kutta_step(name, f, x, t, end):
    a, b, c = (TABLEAUS[name][key] for key in "abc")
    h, k = end - t, []
    for i in range(len(b)):
        y = x + h * sum((a[i][j] * k[j] for j in range(i)), 0.0 * x)
        k.append(f(y, t + c[i] * h))
    return x + h * sum(w * v for w, v in zip(b, k, strict=True))


def runge_kutta(name, problem, path, x, times):
    for t, end in itertools.pairwise(times):
        x = runge_kutta_step(name, problem.velocity, x, t, end)
    return x


def level(path, t):
    alpha, sigma, _, _ = (float(v) for v in paths.coefficients(path, t))
    return alpha, sigma, np.log(alpha / sigma), sigma / alpha


def multistep(step, remembered, order, problem, path, x, times, start):
    """`step(x, i, values)` moves from times[i] to times[i + 1] with the last predictions, the newest first."""
    values = []
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        values = [remembered(x, t), *values][:order]
        if start == "single" and i < order - 1:
            x = runge_kutta_step(STARTS[order], problem.velocity, x, t, end)
        else:
            x = step(x, i, values)
    return x


def lagrange(nodes, k, u):
    return np.prod([(u - nodes[j]) / (nodes[k] - nodes[j]) for j in range(len(nodes)) if j != k])


def integral(f, lo, hi):
    return quad(f, lo, hi, epsabs=1e-16, epsrel=1e-13)[0]


def adams_bashforth(order, problem, path, x, times, start="ramp"):
    def step(x, i, values):
        nodes = [times[i - j] for j in range(len(values))]
        for k, value in enumerate(values):
            x = x + value * integral(lambda u, k=k: lagrange(nodes, k, u), times[i], times[i + 1])
        return x

    return multistep(step, problem.velocity, order, problem, path, x, times, start)


def dpm_solver(order, problem, path, x, times, start="ramp"):
    """Lu et al. 2022; 3M with the third-order term's factor 2: exponential Taylor expansion around lambda_i."""

    def step(x, i, values):
        (_, s0, l0, _), (a1, s1, l1, _) = level(path, times[i]), level(path, times[i + 1])
        h = l1 - l0
        # D(lambda) by its interpolating polynomial, against e^(lambda - lambda'): the exact integral of the expansion.
        lam = [level(path, times[i - j])[2] for j in range(len(values))]
        out = s1 / s0 * x - a1 * np.expm1(-h) * values[0]
        if len(values) == 2:
            return out - 0.5 * a1 * np.expm1(-h) * h / (lam[0] - lam[1]) * (values[0] - values[1])
        if len(values) == 3:
            for k in range(3):
                weight = integral(
                    lambda u, k=k: np.exp(u - l1) * (lagrange(lam, k, u) - (1.0 if k == 0 else 0.0)), l0, l1
                )
                out = out + a1 * weight * values[k]
        return out

    return multistep(step, lambda x, t: problem.means(x, t)[0], order, problem, path, x, times, start)


def deis(order, problem, path, x, times, start="ramp", variant="rho"):
    """Zhang & Chen 2023, rho-AB: x / alpha moves by the integral over rho of the noise's polynomial in rho, or in log rho."""
    of = np.log if variant == "logrho" else lambda rho: rho

    def step(x, i, values):
        (a0, _, _, r0), (a1, _, _, r1) = level(path, times[i]), level(path, times[i + 1])
        nodes = [of(level(path, times[i - j])[3]) for j in range(len(values))]
        scaled = x / a0
        for k, value in enumerate(values):
            scaled = scaled + value * integral(lambda rho, k=k: lagrange(nodes, k, of(rho)), r0, r1)
        return a1 * scaled

    return multistep(step, lambda x, t: problem.means(x, t)[1], order, problem, path, x, times, start)


def phi(k, z):
    """phi_k(z) = integral over [0, 1] of e^((1 - u) z) u^(k - 1) / (k - 1)!."""
    return integral(lambda u: np.exp((1 - u) * z) * u ** (k - 1) / np.prod(np.arange(1.0, k)), 0.0, 1.0)


def res(order, problem, path, x, times):
    """Hochbruck & Ostermann 2005 in lambda on the data: ETD2RK with c2 = 1/2; order 3 with c2 = 1/2, c3 = 2/3."""
    for t, end in itertools.pairwise(times):
        (_, s0, l0, _), (a1, s1, l1, _) = level(path, t), level(path, end)
        h = l1 - l0

        def at(c, combination, s0=s0, l0=l0, h=h, t=t, end=end, x=x):
            """The stage at lambda + c h: its time, and x there."""
            when = time_of(path, l0 + c * h, t, end)
            alpha, sigma, _, _ = level(path, when)
            return problem.means(sigma / s0 * x + alpha * h * combination, when)[0]

        d1 = problem.means(x, t)[0]
        d2 = at(0.5, 0.5 * phi(1, -0.5 * h) * d1)
        if order == 2:
            total = (phi(1, -h) - 2 * phi(2, -h)) * d1 + 2 * phi(2, -h) * d2
        else:
            c = 2 / 3
            a32 = 4 * phi(2, -c * h) / (9 * 0.5)
            d3 = at(c, (c * phi(1, -c * h) - a32) * d1 + a32 * d2)
            total = (phi(1, -h) - 1.5 * phi(2, -h)) * d1 + 1.5 * phi(2, -h) * d3
        x = s1 / s0 * x + a1 * h * total
    return x


def time_of(path, wanted, t, end):
    lo, hi = min(t, end), max(t, end)
    return brentq(lambda u: level(path, u)[2] - wanted, lo, hi, xtol=1e-16, rtol=1e-15)
