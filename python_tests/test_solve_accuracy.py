"""solve against SciPy at the same tolerance, and its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference.odes import problems

PEERS = {"bosh3": "RK23", "dopri5": "RK45", "tsit5": "RK45", "dop853": "DOP853"}
ORDERS = {"bosh3": 3, "dopri5": 5, "tsit5": 5, "dop853": 8}
CASES = [
    (name, method, tolerance)
    for name in problems()
    for method in PEERS
    for tolerance in (1e-3, 1e-6, 1e-10)
    # An order-3 method at 1e-10 takes SciPy half a minute.
    if method != "bosh3" or tolerance > 1e-8
]


def rms(error):
    return float(np.sqrt((error**2).mean()))


@pytest.mark.parametrize("name, method, tolerance", CASES)
def test_error_at_most_three_times_scipys(name, method, tolerance):
    """The root mean square over the batch, against DOP853 at 1e-13; one sample alone may be lucky."""
    problem = problems()[name]
    found = pfc.solve(
        problem.field, problem.x0, [0.0, problem.end], method, tolerance, tolerance, problem.cond
    )
    assert found.success.all() and (found.reached == problem.end).all()
    mine = rms(found.x[-1].numpy() - problem.ends)
    peers = [problem.scipy(i, PEERS[method], tolerance)[0] for i in range(len(problem.x0))]
    theirs = rms(np.stack(peers) - problem.ends)
    assert mine <= 3.0 * theirs + 1e-12


def logistic(x, t):
    return x * (1.0 - x) + 0.3 * t[:, None]


@pytest.mark.parametrize("method", PEERS)
def test_error_follows_the_tolerance(method):
    """The global error goes with the tolerance to the power of about one: error per step, k = order."""
    x0 = torch.tensor([[0.1, 0.6]], dtype=torch.float64)
    right = pfc.solve(logistic, x0, [0.0, 4.0], "dop853", 1e-13, 1e-13).x[-1]
    tolerances = [1e-4, 1e-6, 1e-8] if method == "bosh3" else [1e-5, 1e-7, 1e-9]
    errors = [
        float((pfc.solve(logistic, x0, [0.0, 4.0], method, tol, tol).x[-1] - right).abs().max())
        for tol in tolerances
    ]
    slope = np.log(errors[0] / errors[-1]) / np.log(tolerances[0] / tolerances[-1])
    assert slope > 0.7, errors
    assert errors[-1] < 30 * tolerances[-1]


@pytest.mark.parametrize("method", PEERS)
def test_a_single_step_has_the_methods_order(method):
    """One step of length h: local error h^(order + 1); dense output inside it one order of its own."""
    x0 = torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    dense_order = {"bosh3": 3, "dopri5": 4, "tsit5": 4, "dop853": 7}[method]
    sizes = (0.4, 0.8) if method == "dop853" else (0.02, 0.04)
    errors = []
    for h in sizes:
        times = [0.0, 0.3 * h, 0.62 * h, h]
        found = pfc.solve(logistic, x0, times, method, 1e9, 1e9, first_step=h)
        right = pfc.solve(logistic, x0, times, "dop853", 1e-14, 1e-14).x
        assert found.accepted.tolist() == [1] and found.rejected.tolist() == [0]
        errors.append((found.x - right).abs().flatten(1).amax(1).numpy())
    slopes = np.log2(errors[1][1:] / errors[0][1:])
    assert slopes[-1] > ORDERS[method] + 1 - 0.4, slopes
    assert (slopes[:-1] > dense_order + 1 - 0.4).all(), slopes


@pytest.mark.parametrize("method", PEERS)
def test_dense_output_keeps_the_tolerance(method):
    problem = problems()["van der Pol"]
    times = torch.linspace(0.0, problem.end, 41, dtype=torch.float64)
    found = pfc.solve(
        problem.field, problem.x0[:3], times, method, 1e-6, 1e-6, {"mu": problem.cond["mu"][:3]}
    )
    for i in range(3):
        right = problem.scipy(i, "DOP853", 1e-13, times.numpy())[0]
        theirs = problem.scipy(i, PEERS[method], 1e-6, times.numpy())[0]
        assert np.abs(found.x[:, i].numpy() - right).max() <= 3 * np.abs(theirs - right).max()
    ends = pfc.solve(
        problem.field, problem.x0[:3], times[[0, -1]], method, 1e-6, 1e-6, {"mu": problem.cond["mu"][:3]}
    )
    assert torch.equal(ends.x[-1], found.x[-1]) and torch.equal(ends.accepted, found.accepted)
