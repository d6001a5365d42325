"""Executes the rows of a plan in NumPy float64, straight from `plan.to_dict()`."""

from __future__ import annotations

import numpy as np

from .noise import normals

DEFAULTS = {
    "evaluates": True, "in_scale": 1.0, "p": 0.0, "q": 1.0, "a": 1.0, "c": 1.0, "b_new": 0.0, "e_new": 0.0, "store": -1,
    "b": {}, "e": {}, "s": {}, "r": {}, "completes_step": False,
}  # fmt: skip


def plan_noise(seeds, shape):
    """draw(n): the n-th noise of the plan's stream for every seed, float64 [B, *shape]."""
    size = int(np.prod(shape, dtype=np.int64))

    def draw(n):
        return normals(list(seeds), size, stream=1, draw=n).astype(np.float64).reshape(len(seeds), *shape)

    return draw


def run(plan, field, x, draw=lambda n: 0.0, edit=lambda step, x: x):
    """The states after each row that completes a step; the last is the answer. field(y, t); draw(n) is noise n; edit(step, x)
    replaces the state at the end of a step, before the row makes its next point."""
    y, scale, slots, states = x, 1.0, {}, []
    for entry in plan["rows"]:
        row = {**DEFAULTS, **entry}
        d = 0.0
        if row["evaluates"]:
            d = row["p"] * y + row["q"] * field(scale * y, row.get("field_t", row["t"]))
        remembered = {k: slots[int(k)] for k in {**row["b"], **row["e"]}}
        x = (
            row["a"] * x
            + row["b_new"] * d
            + sum(v * remembered[k] for k, v in row["b"].items())
            + sum(v * draw(int(n)) for n, v in row["s"].items())
        )
        if row["completes_step"]:
            x = edit(row["step"], x)
        y = (
            row["c"] * x
            + row["e_new"] * d
            + sum(v * remembered[k] for k, v in row["e"].items())
            + sum(v * draw(int(n)) for n, v in row["r"].items())
        )
        scale = row["in_scale"]
        if row["store"] >= 0:
            slots[row["store"]] = d
        if row["completes_step"]:
            states.append(x)
    return states if states else [x]
