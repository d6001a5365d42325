"""The solvers as textbooks write them: a loop, no table. dx/dt = f(x, t); `x` may be anything with + and *."""

from __future__ import annotations

import itertools

from . import paths


def euler(f, x, times):
    for t, end in itertools.pairwise(times):
        x = x + (end - t) * f(x, t)
    return x


def midpoint(f, x, times):
    for t, end in itertools.pairwise(times):
        h = end - t
        x = x + h * f(x + h / 2 * f(x, t), t + h / 2)
    return x


def heun(f, x, times):
    for t, end in itertools.pairwise(times):
        h = end - t
        k1 = f(x, t)
        k2 = f(x + h * k1, end)
        x = x + h / 2 * (k1 + k2)
    return x


def rk4(f, x, times):
    for t, end in itertools.pairwise(times):
        h = end - t
        k1 = f(x, t)
        k2 = f(x + h / 2 * k1, t + h / 2)
        k3 = f(x + h / 2 * k2, t + h / 2)
        k4 = f(x + h * k3, end)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def ab2(f, x, times):
    """x + h [(1 + r) f - r f_before], r = h / (2 h_before); the first step is Euler's."""
    before = None
    for i, (t, end) in enumerate(itertools.pairwise(times)):
        now, h = f(x, t), end - t
        r = 0.0 if before is None else h / (2 * (t - times[i - 1]))
        x = x + h * ((1 + r) * now - (r * before if before is not None else 0.0))
        before = now
    return x


def ddim(means, x, times, path):
    """x' = alpha' E[x1 | x] + sigma' E[x0 | x]; means(x, t) gives the two."""
    for t, end in itertools.pairwise(times):
        alpha, sigma, _, _ = paths.coefficients(path, end)
        data, noise = means(x, t)
        x = alpha * data + sigma * noise
    return x


BY_NAME = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4, "ab2": ab2}


def solve(name, field, x, times, full_last_step=False):
    """As the library does it: the last step into t = 1 is Euler's if the method has a stage there."""
    if name in ("heun", "rk4") and times[-1] == 1.0 and not full_last_step:
        return euler(field, BY_NAME[name](field, x, times[:-1]), times[-2:])
    return BY_NAME[name](field, x, times)
