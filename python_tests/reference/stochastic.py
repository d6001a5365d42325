"""Tables of stochastic samplers on the linear path, written by hand as descriptions for `Plan.from_dict`.

Formulas: MATHS of the design; each function yields the rows of one sampler on a grid inside (0, 1).
"""

from __future__ import annotations

import itertools

import numpy as np

from . import executor


def w(t):
    """The diffusion w(t) of dx = (v + w/2 score) dt + sqrt(w) dW."""
    return np.sin(np.pi * t) ** 2


def drift(t):
    """v + w/2 score as p y + q v, with score = (t v - y) / (1 - t)."""
    return {"p": -0.5 * w(t) / (1 - t), "q": 1 + 0.5 * w(t) * t / (1 - t)}


def steps(times):
    return [(i, t, end, end - t) for i, (t, end) in enumerate(itertools.pairwise(times))]


def euler_maruyama(times):
    return [
        {"t": t, "step": i, **drift(t), "b_new": h, "s": {i: np.sqrt(w(t) * h)}, "completes_step": True}
        for i, t, _, h in steps(times)
    ]


def stochastic_heun(times):
    rows = []
    for i, t, end, h in steps(times):
        g = 0.5 * (np.sqrt(w(t)) + np.sqrt(w(end)))
        rows.append({"t": t, "step": i, **drift(t), "s": {i: g * np.sqrt(h)}, "e_new": h, "store": 0})
        rows.append(
            {"t": end, "step": i, **drift(end), "b": {0: h / 2}, "b_new": h / 2, "completes_step": True}
        )
    return rows


def stochastic_heun_by_shared_draw(times):
    """The same sampler, with the noise named twice: y draws it in the first row, x draws it again in the second."""
    rows = []
    for i, t, end, h in steps(times):
        g = 0.5 * (np.sqrt(w(t)) + np.sqrt(w(end))) * np.sqrt(h)
        rows.append({"t": t, "step": i, **drift(t), "r": {i: g}, "e_new": h, "store": 0})
        rows.append(
            {"t": end, "step": i, **drift(end), "b": {0: h / 2}, "b_new": h / 2, "s": {i: g}, "completes_step": True}
        )  # fmt: skip
    return rows


def ancestral(times, eta=0.7):
    rows = []
    for i, t, end, _ in steps(times):
        sigma, after = 1 - t, 1 - end
        down = after * (1 + eta * (after / sigma - 1))
        k = (1 - after) / (1 - down)
        noise = np.sqrt(max(0.0, after**2 - down**2 * k**2))
        rows.append(
            {"t": t, "step": i, "a": k, "b_new": k * (sigma - down), "s": {i: noise}, "completes_step": True}
        )
    return rows


def consistency(times):
    return [
        {"t": t, "step": i, "p": 1.0, "q": 1 - t, "a": 0.0, "b_new": end, "s": {i: 1 - end}, "completes_step": True}
        for i, t, end, _ in steps(times)
    ]  # fmt: skip


def churn(times):
    """Heun in rho = (1 - t)/t for x/t; each step first raises rho by a factor, with noise: a row without an evaluation."""
    gamma, rows = 0.3 / (len(times) - 1), []
    for i, t, end, _ in steps(times):
        rho, after = (1 - t) / t, (1 - end) / end
        raised = rho * (1 + gamma)
        hat = 1 / (1 + raised)
        rows.append(
            {"evaluates": False, "t": t, "step": i, "a": hat / t, "s": {i: hat * np.sqrt(raised**2 - rho**2)}}
        )
        weight = end * (after - raised)
        rows.append({"t": hat, "step": i, "p": 1.0, "q": -hat, "c": end / hat, "e_new": weight, "store": 0})
        rows.append(
            {"t": end, "step": i, "p": 1.0, "q": -end, "a": end / hat, "b": {0: weight / 2}, "b_new": weight / 2,
             "completes_step": True}
        )  # fmt: skip
    return rows


def dpmpp_2m_sde(times, eta=0.6):
    lam = np.log(times / (1 - times))
    rows = []
    for i, t, end, _ in steps(times):
        h = lam[i + 1] - lam[i]
        weight = -end * np.expm1(-(1 + eta) * h)
        k = 0.5 * h / (lam[i] - lam[i - 1]) if i else 0.0
        rows.append(
            {"t": t, "step": i, "p": 1.0, "q": 1 - t, "a": (1 - end) / (1 - t) * np.exp(-eta * h),
             "b_new": weight * (1 + k), "b": {1 - i % 2: -weight * k} if i else {}, "store": i % 2,
             "s": {i: (1 - end) * np.sqrt(-np.expm1(-2 * eta * h))}, "completes_step": True}
        )  # fmt: skip
    return rows


BUILDERS = {
    f.__name__: f
    for f in (
        euler_maruyama,
        stochastic_heun,
        stochastic_heun_by_shared_draw,
        ancestral,
        consistency,
        churn,
        dpmpp_2m_sde,
    )
}
SLOTS = {"stochastic_heun": 1, "stochastic_heun_by_shared_draw": 1, "churn": 1, "dpmpp_2m_sde": 2}
WORKING = {"consistency": "data", "dpmpp_2m_sde": "data", "churn": "noise"}


def describe(name, times):
    """The plan's description."""
    rows = [
        {k: {str(n): float(c) for n, c in v.items()} if isinstance(v, dict) else v for k, v in row.items()}
        for row in BUILDERS[name](np.asarray(times))
    ]
    return {
        "format": "pyflowcore.plan", "version": 1, "solver": name, "path": "linear", "prediction": "velocity",
        "working": WORKING.get(name, "velocity"), "times": [float(t) for t in times], "slots": SLOTS.get(name, 0),
        "rows": rows,
    }  # fmt: skip


def gaussian_moments(description, mean, std, start):
    """Exact mean and variance on data N(mean, std^2): the coefficients of [1, first state, noise 0, noise 1, ...]."""
    size = 3 + max(int(n) for row in description["rows"] for n in {**row.get("s", {}), **row.get("r", {})})
    unit = np.eye(size)

    def velocity(y, t):
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean * unit[0] + (t * std**2 - (1 - t)) / variance * (y - t * mean * unit[0])

    first = start * mean * unit[0] + np.sqrt((1 - start) ** 2 + (start * std) ** 2) * unit[1]
    final = executor.run(description, velocity, first, lambda n: unit[2 + n])[-1]
    return final[0], (final[1:] ** 2).sum()
