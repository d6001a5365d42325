"""UniPC as Zhao et al. 2023 write it, algorithm 1: predict, evaluate, correct. The corrected state goes on."""

from __future__ import annotations

import numpy as np

from . import paths


def _move(path, times, data, x, i, order, bh, new=None):
    """x at times[i + 1] from x at times[i] with the predictions data[i], data[i - 1], ...; new is the one at times[i + 1]."""
    lam = np.array([paths.log_snr(path, t) for t in times])
    _, sigma, _, _ = paths.coefficients(path, times[i])
    alpha1, sigma1, _, _ = paths.coefficients(path, times[i + 1])
    h = lam[i + 1] - lam[i]
    b = -h if bh == "bh1" else np.expm1(-h)
    r = [(lam[i - k] - lam[i]) / h for k in range(1, order)]
    differences = [data[i - k] - data[i] for k in range(1, order)]
    if new is not None:
        r, differences = [*r, 1.0], [*differences, new - data[i]]
    out = sigma1 / sigma * x - alpha1 * np.expm1(-h) * data[i]
    if not r:
        return out
    n = len(r)
    # moments[j] = h^(j+1) phi_(j+1)(h) / B of the paper, here with phi_k(z) = sum_m z^m / (m + k)! at z = -h
    z = -h
    phi = [sum(z**m / np.prod(np.arange(1.0, m + k + 1)) for m in range(60)) for k in range(2, n + 2)]
    moments = [z * phi[j] * np.prod(np.arange(1.0, j + 2)) / b for j in range(n)]
    weights = [0.5] if n == 1 else np.linalg.solve(np.vander(r, n, increasing=True).T, moments)
    return out - alpha1 * b * sum(w * d / q for w, d, q in zip(weights, differences, r, strict=True))


def solve(means, path, x, times, order, bh, started=()):
    """The predicted states at every grid point after the first; the last is the answer. `started` has the states at
    times[1], times[2], ... where another method made the first steps."""
    data, states = [means(x, times[0])[0]], list(started)
    for t, x in zip(times[1:], started, strict=False):
        data.append(means(x, t)[0])
    for i in range(len(states), len(times) - 1):
        p = min(order, i + 1)
        predicted = _move(path, times, data, x, i, p, bh)
        states.append(predicted)
        if i + 2 < len(times):
            new = means(predicted, times[i + 1])[0]
            x = _move(path, times, data, x, i, p, bh, new)
            data.append(new)
    return states
