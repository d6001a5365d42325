"""Samples without a density beside samples that have one, and fields whose divergence is none, or nothing."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from test_likelihood import back, grown, growth
from test_likelihood_calls import OpaqueSine, opaque
from torch.distributions import Distribution, Exponential, Independent, MultivariateNormal, Normal, Uniform

import pyflowcore as pfc
from pyflowcore.likelihood.divergence import Trace

F64 = torch.float64
EULER = back("euler", 3)
WAYS = [{}, {"plan": EULER}]


def normal(**facts):
    return MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), **facts)


def at_the_call(caught):
    """Of each of our warnings: whether it points to the line of the call."""
    return [one.filename == __file__ for one in caught if one.category is pfc.PyflowcoreWarning]


class Plain(Distribution):
    """Neither a support nor samples of its own."""

    def __init__(self):
        super().__init__(event_shape=torch.Size((2,)), validate_args=False)

    def log_prob(self, value):
        assert value.isfinite().all()
        return -value.square().sum(-1)


# ---------------------------------------------------------------------------------------------------------------- sources
@pytest.mark.parametrize("source", [None, normal(), normal(validate_args=False), Plain()])
@pytest.mark.parametrize("way", WAYS)
def test_a_sample_that_is_not_finite_fails_alone(source, way):
    x1 = pfc.randn(range(4), (2,), dtype=F64)
    x1[1, 0], x1[3, 1] = torch.nan, torch.inf
    state = torch.get_rng_state()
    with pytest.warns(pfc.PyflowcoreWarning, match="2 of 4 samples have no density .2 NON_FINITE") as caught:
        found = pfc.log_prob(growth, x1, source=source, **way)
    assert at_the_call(caught) == [True]
    assert torch.equal(torch.get_rng_state(), state)
    fine = pfc.log_prob(growth, x1[::2], source=source, **way)
    assert torch.equal(found.value[::2], fine.value) and fine.value.isfinite().all()
    assert found.value[1::2].isnan().all()
    assert found.status.tolist() == [0, pfc.Status.NON_FINITE, 0, pfc.Status.NON_FINITE]


@pytest.mark.parametrize("bad", [[1], [0, 1, 2]])
def test_outside_the_support(bad):
    """-inf for the sample, whatever is said of the others; also where nothing validates and the formula goes on."""
    x1 = torch.full((3, 2), 0.5, dtype=F64)
    x1[bad, 1] = -1.5
    low, high = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    for base in (Uniform(low, high), Exponential(high), Exponential(high, validate_args=False)):
        with warnings.catch_warnings():
            warnings.simplefilter("error", pfc.PyflowcoreWarning)
            found = pfc.log_prob(lambda x, t: 0 * x, x1, source=Independent(base, 1), plan=EULER)
        wanted = base.log_prob(torch.full((2,), 0.5, dtype=F64)).sum().expand(3).clone()
        wanted[bad] = -math.inf
        assert torch.equal(found.value, wanted) and not found.status.any()


def test_sources_of_each_sample():
    """A batch of sources: what stands in for a sample is of its own source."""
    low = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-4.0, -4.0]], dtype=F64)
    source = Independent(Uniform(low, low + 2.0), 1)
    x1 = low + 1.0
    x1[1] = torch.nan
    x1[2] = 9.0
    with pytest.warns(pfc.PyflowcoreWarning, match="1 of 3"):
        found = pfc.log_prob(lambda x, t: 0 * x, x1, source=source, plan=EULER)
    assert found.value[0] == pytest.approx(-2.0 * math.log(2.0))
    assert found.value[1].isnan() and found.value[2] == -math.inf


def test_gradients_beside_failures():
    """Those of the fine samples, in x and in the source's parameters; none of the others."""
    rate = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    x1 = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [-1.0, 1.0], [3.0, 0.5]], dtype=F64, requires_grad=True)
    with pytest.warns(pfc.PyflowcoreWarning):
        found = pfc.log_prob(
            lambda x, t: 0 * x, x1, source=Independent(Exponential(rate), 1), plan=EULER, enable_grad=True
        )
    at_x, at_rate = torch.autograd.grad(found.value[[0, 3]].sum(), (x1, rate))
    # Of sum(log rate - rate x).
    assert torch.equal(at_x[[0, 3]], -rate.detach().expand(2, 2)) and not at_x[[1, 2]].any()
    assert torch.allclose(at_rate, 2.0 / rate.detach() - x1.detach()[[0, 3]].sum(0))


# --------------------------------------------------------------------------------------------------------------- statuses
@pytest.mark.parametrize("way", WAYS)
def test_a_divergence_that_is_not_finite(way):
    """sqrt|x| has no slope at 0, and its values are fine."""
    x1 = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=F64)
    field = lambda x, t: x.abs().sqrt() * (x > 0) * 1e-3  # noqa: E731
    with pytest.warns(pfc.PyflowcoreWarning, match="1 of 2 samples have no density .1 NON_FINITE") as caught:
        found = pfc.log_prob(field, x1, **way)
    assert at_the_call(caught) == [True]
    assert found.value[0].isfinite() and found.value[1].isnan()
    assert found.status.tolist() == [pfc.Status.SUCCESS, pfc.Status.NON_FINITE]


def test_fixed_steps_that_are_not_finite():
    with pytest.warns(pfc.PyflowcoreWarning, match="2 of 2.*2 NON_FINITE"):
        found = pfc.log_prob(lambda x, t: x / 0, torch.ones(2, 2), plan=EULER)
    assert found.value.isnan().all() and (found.status == pfc.Status.NON_FINITE).all()
    fused = pfc.fuse(torch.nn.Linear(3, 2), inputs=("x", "t"))
    x1 = torch.tensor([[1.0, 2.0], [math.inf, 1.0]])
    with pytest.warns(pfc.PyflowcoreWarning, match="1 of 2"):
        found = pfc.log_prob(fused, x1, plan=EULER)
    assert found.status.tolist() == [pfc.Status.SUCCESS, pfc.Status.NON_FINITE]


@pytest.mark.parametrize("way", [{}, {"plan": pfc.plan("euler", 3, last="full")}])
def test_sampling_says_so_too(way):
    x0 = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=F64)
    with pytest.warns(pfc.PyflowcoreWarning, match="1 of 2.*1 NON_FINITE") as caught:
        found = pfc.sample_with_log_prob(lambda x, t: x.abs().sqrt() * (x > 0), x0=x0, **way)
    assert found.status.tolist() == [pfc.Status.SUCCESS, pfc.Status.NON_FINITE] and found.value[1].isnan()
    assert at_the_call(caught) == [True]


def test_tolerances_that_float32_does_not_resolve():
    x1 = torch.ones(2, 2)
    with pytest.warns(pfc.PyflowcoreWarning, match="rtol is 1e-07, below what float32") as caught:
        pfc.log_prob(growth, x1, rtol=1e-7)
    assert at_the_call(caught) == [True]
    with pytest.warns(pfc.PyflowcoreWarning, match="rtol is 1e-08, below what float32"):
        single = pfc.Field(lambda x, t: growth(x, t).float(), dtype=torch.float32)
        pfc.log_prob(single, x1.double(), rtol=torch.tensor([1e-3, 1e-8]), atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pfc.PyflowcoreWarning)
        pfc.log_prob(growth, x1, rtol=1e-6)
        pfc.log_prob(growth, x1.double(), rtol=1e-8)


# ----------------------------------------------------------------------------------------------------------------- fields
def test_a_random_field_is_refused():
    drop = torch.nn.Dropout(0.5)
    for field in (
        lambda x, t: drop(x),
        lambda x, t: x * torch.rand(2),
        lambda x, t: OpaqueSine.apply(drop(x)),
    ):
        for options in (*WAYS, {"plan": EULER, "divergence": pfc.Hutchinson(2)}, {"enable_grad": True}):
            with pytest.raises(ValueError, match=r"field: it draws random numbers.*eval\(\)"):
                pfc.log_prob(field, torch.ones(8, 2), **options)
    drop.eval()
    x1 = torch.ones(3, 2)
    assert torch.equal(
        pfc.log_prob(lambda x, t: drop(x), x1, plan=EULER).value,
        pfc.log_prob(lambda x, t: x, x1, plan=EULER).value,
    )


class Unforeseen(Exception):
    pass


@pytest.mark.parametrize(
    "error, calls",
    [
        (Unforeseen("no"), 1),
        (ValueError("no"), 1),
        (MemoryError("no"), 1),
        (torch.OutOfMemoryError("no"), 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1),
        (RuntimeError("no"), 2),  # once more by itself, which shows that it is the field's own
    ],
)
def test_an_error_of_the_field_comes_out_as_it_is(error, calls):
    seen = []

    def field(x, t):
        seen.append(x)
        raise error

    with pytest.raises(type(error)) as caught:
        Trace(None)(field, torch.ones(2, 2), torch.ones(2), {})
    assert caught.value is error and len(seen) == calls


def test_fields_that_do_not_use_x():
    """dx/dt = t: x_0 = x_1 - 1/2 and no divergence."""
    x1 = pfc.randn(range(3), (2,), dtype=F64)
    wanted = Normal(0.0, 1.0).log_prob(x1 - 0.5).sum(1)
    weight = torch.ones(2, dtype=F64, requires_grad=True)
    for field in (lambda x, t: t[:, None].expand(x.shape) * 1.0, lambda x, t: t[:, None] * weight):
        for options in ({}, {"plan": back("rk4", 2)}, {"divergence": pfc.Hutchinson(2)}):
            found = pfc.log_prob(field, x1, **options)
            assert (found.value - wanted).abs().max() < 1e-9
            assert found.engine.endswith("no products, the field does not depend on x")
    found = pfc.log_prob(lambda x, t: t[:, None] * weight, x1, plan=back("rk4", 2), enable_grad=True)
    (grad,) = torch.autograd.grad(found.value.sum(), weight)
    # Of -(x - w/2)^2 / 2.
    assert (grad - 0.5 * (x1 - 0.5).sum(0)).abs().max() < 1e-12


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("net", [growth, opaque])
def test_fields_that_use_x_part_of_the_time(first, net):
    """Every evaluation is looked at anew."""

    def field(x, t):
        return net(x, t) if (float(t) > 0.4) == first else torch.ones_like(x)

    def used(x, t):
        return field(x, t) + 0 * x

    x1 = pfc.randn(range(3), (2,), dtype=F64)
    found, wanted = (
        pfc.log_prob(pfc.Field(one, time_shape="scalar"), x1, plan=back("rk4", 4)) for one in (field, used)
    )
    assert (found.value - wanted.value).abs().max() < 1e-12


def test_fields_that_leave_pytorch_are_refused():
    def sometimes(x, t):
        return x.detach() * 2.0 if float(t) < 0.5 else torch.ones_like(x)

    periodic = lambda x, t: torch.from_numpy(2 * math.pi * x.detach().numpy()).sin()  # noqa: E731
    fields = [lambda x, t: x.detach() ** 2, periodic, pfc.Field(sometimes, time_shape="scalar")]
    for field in fields:
        with pytest.raises(ValueError, match=r"field: .* no derivative in x, and yet changes with x.*detach"):
            pfc.log_prob(field, torch.zeros(3, 2), plan=EULER)


def test_growth_is_what_it_was():
    x1 = pfc.randn(range(3), (2,), dtype=F64)
    assert (
        pfc.log_prob(growth, x1, source=normal(), plan=back("dopri8", 8)).value - grown(x1)
    ).abs().max() < 1e-11
