"""The order conditions of every tableau: all 17 sums to order 5 (Butcher 1963), one for each rooted tree."""

from __future__ import annotations

import numpy as np
import pytest

from pyflowcore import _core


def conditions(a, b):
    """(order, left side, right side) of every rooted tree with up to five nodes."""
    c = a.sum(1)
    ac, ac2, ac3 = a @ c, a @ c**2, a @ c**3
    aac, aac2 = a @ ac, a @ ac2
    trees = [
        (1, b.sum(), 1),
        (2, b @ c, 1 / 2),
        (3, b @ c**2, 1 / 3),
        (3, b @ ac, 1 / 6),
        (4, b @ c**3, 1 / 4),
        (4, b @ (c * ac), 1 / 8),
        (4, b @ ac2, 1 / 12),
        (4, b @ aac, 1 / 24),
        (5, b @ c**4, 1 / 5),
        (5, b @ (c**2 * ac), 1 / 10),
        (5, b @ ac**2, 1 / 20),
        (5, b @ (c * ac2), 1 / 15),
        (5, b @ (c * aac), 1 / 30),
        (5, b @ ac3, 1 / 20),
        (5, b @ (a @ (c * ac)), 1 / 40),
        (5, b @ aac2, 1 / 60),
        (5, b @ (a @ aac), 1 / 120),
    ]
    assert len(trees) == 17
    return trees


@pytest.mark.parametrize("tableau", _core.tableaus(), ids=lambda tableau: tableau["name"])
def test_order_conditions(tableau):
    a, b, c = (np.array(tableau[k]) for k in ("a", "b", "c"))
    # Rounded coefficients keep a sum to a rounding of its largest terms.
    size = max(1.0, np.abs(a).sum(1).max())
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15 * size, rtol=0)
    assert np.all(np.triu(a) == 0)
    for order, left, right in conditions(a, b):
        if order <= tableau["order"]:
            assert left == pytest.approx(right, abs=1e-15 * size, rel=0)
    # The order is stated no lower than it is; above 5 the measured order of convergence says so (test_orders.py).
    above = [abs(left - right) for order, left, right in conditions(a, b) if order == tableau["order"] + 1]
    assert max(above, default=1.0) > 1e-3


def test_the_conditions_know_a_method_of_order_five():
    """Dormand-Prince 1980 fulfils all 17 sums; a wrong entry does not: the test above can fail."""
    a = np.zeros((6, 6))
    rows = [
        [1 / 5], [3 / 40, 9 / 40], [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    ]  # fmt: skip
    for i, row in enumerate(rows):
        a[i + 1, : i + 1] = row
    b = np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84])
    assert max(abs(left - right) for _, left, right in conditions(a, b)) < 1e-15
    a[3, 0] += 1e-6
    assert max(abs(left - right) for _, left, right in conditions(a, b)) > 1e-8
