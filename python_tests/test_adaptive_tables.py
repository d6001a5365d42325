"""The tables of the adaptive methods: error weights, dense output, and the logarithm of the step control."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from test_tableaus import conditions

from pyflowcore import _core
from pyflowcore.ops import _plain_adaptive as layout

TABLES = _core.adaptive_tables()
# Order of the embedded estimates, and of dense output.
ORDERS = {"bosh3": (2, 3), "dopri5": (4, 4), "tsit5": (4, 4), "dop853": (5, 7)}


def parts(method):
    """a [stages + 1 + extra] and b over all of them, and the facts."""
    table = TABLES[method]
    facts = [int(value) for value in table[layout.FACTS]]
    count = facts[layout.STAGES] + 1 + facts[layout.EXTRA]
    return table, table[:count, :count], table[facts[layout.STAGES]][:count], facts


@pytest.mark.parametrize("method", TABLES)
def test_times_are_sums_of_rows(method):
    table, a, _, _ = parts(method)
    size = np.abs(a).sum(1).max()
    np.testing.assert_allclose(a.sum(1), table[layout.TIME][: len(a)], atol=1e-15 * size, rtol=0)
    assert np.all(np.triu(a) == 0)


@pytest.mark.parametrize("row, method", [*((layout.ERROR, m) for m in TABLES), (layout.ERROR3, "dop853")])
def test_the_embedded_methods_have_their_order(method, row):
    table, a, b, facts = parts(method)
    order = 3 if row == layout.ERROR3 else ORDERS[method][0]
    embedded = b - table[row][: len(b)]
    found = conditions(a, embedded)
    for tree_order, left, right in found:
        if tree_order <= order:
            assert left == pytest.approx(right, abs=3e-15 * max(1.0, np.abs(a).sum(1).max()))
    if order < 5:
        assert max(abs(left - right) for o, left, right in found if o == order + 1) > 1e-4
    if row == layout.ERROR and method != "dop853":
        assert facts[layout.ORDER] == order + 1
    # The solution itself has one order more, or several.
    assert max(abs(left - right) for o, left, right in conditions(a, b) if o <= min(order + 1, 5)) < 1e-13


@pytest.mark.parametrize("theta", [0.0, 0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("method", TABLES)
def test_dense_output_has_its_order(method, theta):
    table, a, b, facts = parts(method)
    at = torch.tensor([theta], dtype=torch.float64)
    weights = np.array([float(layout.dense_weight(table.tolist(), facts, j, at)) for j in range(len(b))])
    size = max(1.0, np.abs(a).sum(1).max()) * 10
    for order, left, right in conditions(a, weights):
        if order <= min(ORDERS[method][1], 5):
            assert left == pytest.approx(right * theta**order, abs=1e-15 * size)
    if theta == 1.0:
        np.testing.assert_allclose(weights, b, atol=1e-15)


def test_logarithm_and_exponential():
    """Below 2 ulp, over all of float64's normal numbers."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [np.exp(rng.uniform(-700, 700, 2000)), 1.0 + rng.uniform(-0.3, 0.4, 2000), [1.0, 2.0, 0.5]]
    )
    found = layout.exact_log(torch.from_numpy(values)).numpy()
    with mpmath.workdps(40):
        right = [mpmath.log(mpmath.mpf(float(v))) for v in values]
        for value, exact in zip(found, right, strict=True):
            assert abs(mpmath.mpf(float(value)) - exact) <= 2 * np.spacing(abs(float(exact)))
    assert layout.exact_log(torch.ones(1, dtype=torch.float64)) == 0.0
    powers = rng.uniform(-200, 200, 2000)
    np.testing.assert_allclose(layout.exact_exp(torch.from_numpy(powers)), np.exp(powers), rtol=5e-16)
