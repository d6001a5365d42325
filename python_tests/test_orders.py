"""The order of every solver, measured as MATHS says: float64, an interior grid uniform in lambda, a field that is neither
affine nor autonomous, against DOP853 at 1e-13; the finest pair decides, slope at least p - 0.3."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _core
from reference import fields
from reference import paths as reference
from reference.torch_fields import as_net

ORDERS = {entry["name"]: entry["order"] for entry in _core.solvers()}
# Step counts that leave errors between 1e-11 and 1e-4 or thereabouts.
STEPS = {1: (1000, 2000), 2: (250, 500), 4: (60, 120)}


@functools.cache
def problem(path):
    times = reference.lambda_grid(path, 4)
    mixture = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])
    x0 = np.linspace(-1.2, 1.2, 33)
    return mixture, x0, mixture.flow(x0, times[0], times[-1])


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("solver", sorted(ORDERS))
def test_order(path, solver):
    mixture, x0, exact = problem(path)
    order = ORDERS[solver]
    errors = []
    for steps in STEPS[order]:
        plan = pfc.plan(solver, grid=reference.lambda_grid(path, steps), path=path)
        field = pfc.Field(as_net(mixture.of("velocity")), path=path)
        found = pfc.Sampler(plan)(field, x0=torch.from_numpy(x0)[None])
        errors.append(np.abs(found[0].numpy() - exact).max())
    slope = np.log2(errors[0] / errors[1])
    assert 1e-11 < errors[1] < (1e-4 if order > 1 else 5e-3), errors
    assert slope >= order - 0.3, (slope, errors)
