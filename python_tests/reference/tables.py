"""Operator inputs for tests: a table of one row from its letters, and the row in NumPy float64."""

from __future__ import annotations

import numpy as np
import torch

from pyflowcore import _core

from .noise import normals

R = _core.record


def table(**letters):
    """A [1, 56] table. Scalars by name; b, e as {slot: coefficient}; s, r as {draw: coefficient}."""
    record = torch.zeros(1, R["width"], dtype=torch.float64)
    values = {"evaluates": 1.0, "store": -1.0, "in_scale": 1.0, "q": 1.0, "a": 1.0, "c": 1.0} | letters
    values |= {"a_minus_1": values["a"] - 1.0, "c_minus_1": values["c"] - 1.0}
    for name in ("b", "e"):
        for slot, value in values.pop(name, {}).items():
            record[0, R[name] + slot] = value
    record[0, R["draw"] : R["draw"] + R["max_draws"]] = -1.0
    s, r = values.pop("s", {}), values.pop("r", {})
    for n, index in enumerate(sorted({*s, *r})):
        record[0, R["draw"] + n] = index
        record[0, R["s"] + n], record[0, R["r"] + n] = s.get(index, 0.0), r.get(index, 0.0)
    for name, value in values.items():
        record[0, R[name]] = float(value)
    return record


def float64(tensor):
    return None if tensor is None else tensor.detach().to(torch.float64).numpy()


def combine(x, record, branches=(), scales=(), y=None, slots=None, seeds=None):
    """(state, point, prediction) of a one-row table; branches [B, ...] each, the unconditional last; scales [B] or number
    for each conditional one."""
    row = record[0].tolist()
    x = float64(x)
    y = x if y is None else float64(y)
    outs = [float64(branch) for branch in branches]
    d = np.zeros_like(x)
    if row[R["evaluates"]]:
        wide = (-1,) + (1,) * (x.ndim - 1)
        out = outs[-1] + sum(
            np.asarray(w, dtype=np.float64).reshape(wide) * (c - outs[-1])
            for w, c in zip(scales, outs[:-1], strict=True)
        )
        d = row[R["p"]] * y + row[R["q"]] * out
    totals = []
    for fresh, terms, draws in (("b_new", "b", "s"), ("e_new", "e", "r")):
        total = row[R[fresh]] * d
        for k in range(R["max_slots"]):
            if row[R[terms] + k]:
                total = total + row[R[terms] + k] * float64(slots[k])
        for n in range(R["max_draws"]):
            if row[R[draws] + n]:
                size = int(np.prod(x.shape[1:], dtype=np.int64))
                xi = normals(seeds.tolist(), size, stream=1, draw=int(row[R["draw"] + n]))
                total = total + row[R[draws] + n] * xi.astype(np.float64).reshape(x.shape)
        totals.append(total)
    state = row[R["a"]] * x + totals[0]
    return state, row[R["c"]] * state + totals[1], d
