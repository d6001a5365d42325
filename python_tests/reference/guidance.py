"""Guidance in NumPy float64, sample by sample, as the papers write it. Branches are [B, N]; scales a list of [B] or numbers.

Lin et al. 2023 (rescaling), Sadat et al. 2024 (APG), Fan et al. 2025 (CFG-Zero*).
"""

from __future__ import annotations

import numpy as np


def rescaled(g, c, phi):
    """phi g std(c) / std(g) + (1 - phi) g."""
    if g.std() == 0.0:
        return g
    return phi * g * c.std() / g.std() + (1 - phi) * g


def parallel(d, c):
    """The part of d along c."""
    return np.zeros_like(d) if not (c @ c) else (d @ c) / (c @ c) * c


def one(cs, u, w, *, point=None, star=False, eta=1.0, norm=None, beta=0.0, phi=0.0, p=0.0, q=1.0, m=None):
    """(the guided prediction, the new momentum) of one sample; the data is p point + q prediction."""
    y = np.zeros_like(u) if point is None else point
    if star:
        u = (cs[0] @ u) / (u @ u) * u if u @ u else u
    data = [p * y + q * c for c in cs]
    differences = [d - (p * y + q * u) for d in data]
    if m is not None:
        m = differences[0] + beta * m
        differences = [m]
    total = data[0]
    for j, d in enumerate(differences):
        if norm is not None and np.sqrt(d @ d) > norm:
            d = d * norm / np.sqrt(d @ d)
        along = parallel(d, data[0])
        total = total + (w[j] - (j == 0)) * ((d - along) + eta * along)
    return rescaled((total - p * y) / q, cs[0], phi), m


def batch(cs, u, scales, *, point=None, m=None, **rule):
    """Over samples: arrays [B, ...]; scales one number or [B] for each condition."""
    count, shape = len(u), np.shape(u)

    def flat(value):
        return None if value is None else np.asarray(value, dtype=np.float64).reshape(count, -1)

    cs, u, point, m = [flat(c) for c in cs], flat(u), flat(point), flat(m)
    wide = [np.broadcast_to(np.asarray(w, dtype=np.float64), (count,)) for w in scales]
    outs, moved = [], []
    for i in range(count):
        out, new = one(
            [c[i] for c in cs], u[i], [w[i] for w in wide], point=None if point is None else point[i],
            m=None if m is None else m[i], **rule,
        )  # fmt: skip
        outs.append(out)
        moved.append(new)
    return np.stack(outs).reshape(shape), None if m is None else np.stack(moved).reshape(shape)
