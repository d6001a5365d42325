"""Log-densities by adaptive steps: closed forms, both directions, each sample by itself, samples that do not arrive."""

from __future__ import annotations

import math

import pytest
import torch
from test_likelihood import Gaussian, grown, growth, mixture_density

import pyflowcore as pfc
from reference.torch_fields import Mixture


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5", "dop853"])
def test_growth(method):
    x1 = pfc.randn(range(4), (2, 1, 2), dtype=torch.float64)
    found = pfc.log_prob(growth, x1, method=method, rtol=1e-7, atol=1e-7)
    assert (found.value - grown(x1)).abs().max() < 1e-5
    assert found.engine.startswith("adaptive steps; forward mode")
    assert (found.status == pfc.Status.SUCCESS).all() and (found.nfe > 0).all()


def test_defaults():
    """dopri5 at 1e-5, and a tuple of three."""
    x1 = pfc.randn(range(4), (3,))
    value, stderr, nfe = pfc.log_prob(growth, x1)
    assert (value - grown(x1.double())).abs().max() < 1e-4
    assert value.dtype == torch.float64 and not stderr.any()
    again = pfc.log_prob(growth, x1, method="dopri5", rtol=1e-5, atol=1e-5)
    assert torch.equal(again.value, value) and torch.equal(again.nfe, nfe)


@pytest.mark.parametrize("dim", [1, 5])
def test_gaussian_with_full_covariance(dim):
    field = Gaussian(dim)
    there = pfc.sample_with_log_prob(
        field, shape=(dim,), seeds=range(4), dtype=torch.float64, rtol=1e-7, atol=1e-7
    )
    again = pfc.log_prob(field, there.x, rtol=1e-7, atol=1e-7)
    wanted = field.data.log_prob(there.x)
    assert (there.value - wanted).abs().max() < 1e-5
    assert (again.value - wanted).abs().max() < 1e-5


def test_mixture():
    mixture = Mixture([[-1.5, 0.3], [1.0, 0.5]], 0.5, [0.3, 0.7])
    x1 = pfc.randn(range(5), (2,), dtype=torch.float64)
    field, wanted = mixture.of("velocity"), mixture_density(mixture).log_prob(x1)
    found = pfc.log_prob(field, x1, rtol=1e-7, atol=1e-7)
    assert (found.value - wanted).abs().max() < 1e-5
    probed = pfc.log_prob(
        field, x1, rtol=1e-6, atol=1e-6, divergence=pfc.Hutchinson(40, "gaussian", seeds=range(5))
    )
    assert ((probed.value - wanted).abs() < 5.0 * probed.stderr).all()
    assert (probed.stderr < 1.0).all()


def test_the_log_density_stays_out_of_the_error_norm():
    """The steps are those of the state alone, however rough the divergence is."""

    def rough(x, t):
        return x * 0.5 + 1e-9 * torch.sin(1e9 * x)

    x1 = pfc.randn(range(3), (2,), dtype=torch.float64)
    alone = pfc.solve(lambda x, t: 0.5 * x, x1, [1.0, 0.0])
    assert torch.equal(pfc.log_prob(rough, x1).nfe, alone.nfe)


@pytest.mark.parametrize("divergence", ["exact", "probes"])
def test_every_sample_by_itself(divergence):
    """Values, steps and statuses are those of the sample alone; one that fails changes none."""

    def field(x, t):
        return torch.sin(3 * x) * x * (1.0 - t[:, None])

    seeds = torch.arange(4)
    x1 = pfc.randn(seeds, (3,), dtype=torch.float64)
    x1[2] = torch.nan

    def call(rows):
        kind = divergence if divergence == "exact" else pfc.Hutchinson(2, seeds=seeds[rows])
        return pfc.log_prob(field, x1[rows], divergence=kind)

    with pytest.warns(pfc.PyflowcoreWarning, match="1 of 4.*NON_FINITE"):
        whole = call(slice(None))
    assert whole.value[2].isnan() and whole.status[2] == pfc.Status.NON_FINITE
    for i in (0, 1, 3):
        alone = call(slice(i, i + 1))
        assert torch.equal(alone.value[0], whole.value[i]) and torch.equal(alone.nfe[0], whole.nfe[i])
        assert torch.equal(alone.stderr[0], whole.stderr[i])


def test_a_budget():
    with pytest.warns(pfc.PyflowcoreWarning, match="3 of 3.*BUDGET"):
        found = pfc.log_prob(growth, torch.ones(3, 2), max_nfe=10)
    assert found.value.isnan().all() and (found.nfe <= 10).all()
    assert (found.status == pfc.Status.BUDGET).all()


def test_facts_of_the_field():
    """Sign, time map, and the network's dtype."""
    seen = set()

    def net(x, t):
        seen.update((x.dtype, t.dtype))
        return -x * (1.0 - t[:, None] / 1000.0) ** 2

    field = pfc.Field(net, sign=-1, time=lambda t: 1000.0 * (1.0 - t))
    x1 = pfc.randn(range(3), (2,))
    assert (pfc.log_prob(field, x1).value - grown(x1.double())).abs().max() < 1e-4
    assert seen == {torch.float32}
    seen.clear()
    assert (pfc.log_prob(field, x1.double()).value - grown(x1.double())).abs().max() < 1e-4
    assert seen == {torch.float64}


def test_times_inside():
    """From t = 0.9 to t = 0.1, the source being what is there."""
    x = pfc.randn(range(3), (2,), dtype=torch.float64)
    found = pfc.log_prob(growth, x, t=(0.9, 0.1), rtol=1e-8, atol=1e-8)
    change = (0.9**3 - 0.1**3) / 3.0
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(x * math.exp(-change)).sum(1) - 2 * change
    assert (found.value - wanted).abs().max() < 1e-6
    there = pfc.sample_with_log_prob(growth, t=(0.1, 0.9), x0=x * math.exp(-change), rtol=1e-8, atol=1e-8)
    assert (there.value - wanted).abs().max() < 1e-6 and (there.x - x).abs().max() < 1e-6


def test_nothing():
    assert pfc.log_prob(growth, torch.zeros(0, 2)).value.shape == (0,)


X1 = torch.zeros(2, 3)
REFUSED = {
    "prediction": (lambda: pfc.log_prob(pfc.Field(growth, prediction="data"), X1), ["field", "data", "plan"]),
    "scalar": (lambda: pfc.log_prob(pfc.Field(growth, time_shape="scalar"), X1), ["field", "scalar"]),
    "method": (lambda: pfc.log_prob(growth, X1, method="euler"), ["method", "euler", "dopri5"]),
    "rtol": (lambda: pfc.log_prob(growth, X1, rtol=-1.0), ["rtol", "-1"]),
    "t": (lambda: pfc.log_prob(growth, X1, t=1.0), ["t ", "1.0", "two"]),
    "three": (lambda: pfc.log_prob(growth, X1, t=(1.0, 0.5, 0.0)), ["t ", "two"]),
    "forwards": (lambda: pfc.log_prob(growth, X1, t=(0.0, 1.0)), ["t ", "from data to noise", "0 to 1"]),
    "backwards": (lambda: pfc.sample_with_log_prob(growth, x0=X1, t=(1.0, 0.0)), ["t ", "from noise to data"]),
    "both": (
        lambda: pfc.log_prob(growth, X1, t=(0.9, 0.0), plan=pfc.plan("euler", 2, grid=pfc.grids.uniform().reversed())),
        ["t ", "plan"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    made, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        made()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("divergence", ["exact", pfc.Hutchinson(1)])
def test_gradients(divergence):
    """Of log p_0(x e^{-a/3}) - a d/3 in x and a, through dx/dt = a x t^2; the Jacobian is diagonal, so a probe is exact."""
    x1 = pfc.randn(range(3), (2,), dtype=torch.float64).requires_grad_()
    a = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def field(x, t, scale):
        return a * x * (scale * t**2)[:, None]

    found = pfc.log_prob(
        field, x1, cond={"scale": scale}, rtol=1e-8, atol=1e-8, enable_grad=True, divergence=divergence
    )
    grads = torch.autograd.grad(found.value.sum(), (x1, a, scale))
    shrink = torch.exp(-2.0 * a / 3.0).detach()
    per_sample = (x1.detach().square() * shrink - 1.0).sum(1) / 3.0
    for grad, wanted in zip(grads, (-x1.detach() * shrink, per_sample.sum(), 1.3 * per_sample), strict=True):
        assert (grad - wanted).abs().max() < 1e-6
    assert (
        found.value - pfc.log_prob(field, x1, cond={"scale": scale}, rtol=1e-8, atol=1e-8).value
    ).abs().max() < 1e-12
