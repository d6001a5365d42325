"""Hutchinson's probes: their variance (MATHS' closed form 7), what they depend on, and the standard error."""

from __future__ import annotations

import math

import pytest
import torch

import pyflowcore as pfc

EULER = pfc.plan("euler", 1, grid=pfc.grids.uniform().reversed())


def linear(matrix):
    return lambda x, t: x @ matrix.T.to(x.dtype)


def full(dim, seed=5):
    return pfc.randn(range(seed, seed + dim), (dim,), dtype=torch.float64)


@pytest.mark.parametrize("probes", [1, 3])
def test_no_variance_for_a_diagonal_jacobian(probes):
    """v_i^2 = 1, so every Rademacher estimate is the trace itself."""
    diagonal = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)

    def field(x, t):
        return torch.sin(x * diagonal) * t[:, None]

    x = pfc.randn(range(9), (4,), dtype=torch.float64)
    plan = pfc.plan("rk4", 4, grid=pfc.grids.uniform().reversed())
    exact = pfc.log_prob(field, x, plan=plan)
    found = pfc.log_prob(field, x, plan=plan, divergence=pfc.Hutchinson(probes, seeds=range(9)))
    assert (found.value - exact.value).abs().max() < 1e-14
    if probes > 1:
        assert found.stderr.max() < 1e-14


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_mean_and_variance(kind):
    """Of one Euler step over J: the mean is tr J, the variance 2 sum_{i != j} S_ij^2 (Gaussian probes: of all i, j)."""
    count, matrix = 4000, full(5)
    x = torch.zeros(count, 5, dtype=torch.float64)
    exact = pfc.log_prob(linear(matrix), x[:1], plan=EULER).value
    found = pfc.log_prob(
        linear(matrix), x, plan=EULER, divergence=pfc.Hutchinson(1, kind, seeds=range(count))
    )
    symmetric = (matrix + matrix.T) / 2
    if kind == "rademacher":
        symmetric = symmetric - symmetric.diagonal().diag()
    variance = 2.0 * symmetric.square().sum()
    away = found.value - exact
    # Four standard deviations of the sample mean, and of the sample variance by its own fourth moment.
    assert away.mean().abs() < 4.0 * (variance / count).sqrt()
    spread = away.square()
    assert (spread.mean() - variance).abs() < 4.0 * spread.std() / math.sqrt(count)
    assert spread.std() / math.sqrt(count) < 0.05 * variance  # the bound means something


def test_standard_error_is_that_of_the_mean():
    """stderr^2 estimates the variance of the value without bias, so that their means over many samples agree."""
    count, probes, matrix = 2000, 8, full(4)
    x = torch.zeros(count, 4, dtype=torch.float64)
    exact = pfc.log_prob(linear(matrix), x[:1], plan=EULER).value
    found = pfc.log_prob(linear(matrix), x, plan=EULER, divergence=pfc.Hutchinson(probes, seeds=range(count)))
    squares = (found.value - exact).square()
    error = squares.std() / math.sqrt(count) + found.stderr.square().std() / math.sqrt(count)
    assert (squares.mean() - found.stderr.square().mean()).abs() < 4.0 * error
    assert error < 0.1 * squares.mean()
    assert (found.stderr > 0).all()


def test_one_probe_has_no_standard_error():
    found = pfc.log_prob(linear(full(3)), torch.zeros(2, 3), plan=EULER, divergence=pfc.Hutchinson())
    assert found.stderr.isnan().all() and found.value.isfinite().all()


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_follow_from_the_samples_seed(kind):
    seeds = [3, 2**63, -7, 11]
    state = torch.empty(4, 2, 3, dtype=torch.float64)
    probes = pfc.Hutchinson(3, kind, seeds=seeds).draw(state)
    assert probes.shape == (3, 4, 2, 3)
    for i, seed in enumerate(seeds):
        alone = pfc.Hutchinson(3, kind, seeds=[seed]).draw(state[:1])
        assert torch.equal(alone[:, 0], probes[:, i])
    assert torch.equal(pfc.Hutchinson(2, kind, seeds=seeds).draw(state), probes[:2])
    wanted = pfc.randn(seeds, (2, 3), stream=2, draw=1, dtype=torch.float64)
    assert torch.equal(probes[1], wanted if kind == "gaussian" else wanted.sign())
    # Neither the start's noise nor that of a plan's draws.
    assert not torch.equal(probes[0], pfc.randn(seeds, (2, 3), dtype=torch.float64))


def test_one_set_of_probes_for_a_trajectory():
    """Held fixed, two half steps of a constant Jacobian are one whole step, to rounding."""
    matrix, x = full(3), torch.zeros(6, 3, dtype=torch.float64)
    ways = [pfc.plan("euler", n, grid=pfc.grids.uniform().reversed()) for n in (1, 2, 7)]
    probes = pfc.Hutchinson(2, seeds=range(6))
    values = [pfc.log_prob(linear(matrix), x, plan=plan, divergence=probes).value for plan in ways]
    assert (values[0] - values[1]).abs().max() < 1e-13
    assert (values[0] - values[2]).abs().max() < 1e-13


def test_seeds_of_a_sample_are_its_probes_too():
    plan = pfc.plan("euler", 2)
    one = {"plan": plan, "shape": (3,), "divergence": pfc.Hutchinson(2)}
    found = pfc.sample_with_log_prob(linear(full(3)), seeds=range(5), **one)
    alone = pfc.sample_with_log_prob(linear(full(3)), seeds=[4], **one)
    assert torch.allclose(found.value[4:], alone.value, rtol=1e-6)
    own = {**one, "divergence": pfc.Hutchinson(2, seeds=range(50, 55))}
    assert not torch.allclose(
        pfc.sample_with_log_prob(linear(full(3)), seeds=range(5), **own).value, found.value
    )


def test_manual_seed_without_seeds():
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(
            pfc.log_prob(linear(full(3)), torch.zeros(2, 3), plan=EULER, divergence=pfc.Hutchinson()).value
        )
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


REFUSED = {
    "none": (lambda: pfc.Hutchinson(0), ["probes", "0"]),
    "half": (lambda: pfc.Hutchinson(1.5), ["probes", "float"]),
    "kind": (lambda: pfc.Hutchinson(1, "sign"), ["kind", "sign", "rademacher", "gaussian"]),
    "seeds": (lambda: pfc.Hutchinson(seeds=[0.5]), ["seeds", "0.5"]),
    "count": (lambda: pfc.Hutchinson(seeds=[1, 2]).draw(torch.zeros(3, 2)), ["seeds", "2", "3"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
