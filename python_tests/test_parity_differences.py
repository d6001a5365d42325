"""Where we differ from public schedulers on purpose. Every test measures that theirs does it, and that ours does not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import fields, orders, peer

pytest.importorskip("diffusers", reason="the differences are measured on diffusers, which is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

UNIPC, DPM, DEIS = "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler"
EULER = "FlowMatchEulerDiscreteScheduler"
VELOCITY = fields.Mixture("linear", [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6]).of("velocity")
X0 = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 3, 4, 4)))


def theirs(x, sigma):
    return torch.as_tensor(-VELOCITY(x.double().numpy(), 1.0 - sigma)).to(x.dtype)


def ours(solver, sigmas, x0=X0, **options):
    plan = pfc.plan(solver, grid=pfc.grids.sigmas(sigmas), **options)
    net = pfc.Field(lambda x, t: theirs(x, 1.0 - float(t)), sign=-1, time_shape="scalar")
    return pfc.Sampler(plan)(net, x0=x0, return_trajectory=True).states


def shifted(high, low, steps):
    s = np.linspace(high, low, steps + 1)
    return 3.0 * s / (1.0 + 2.0 * s)


def largest(a, b):
    return float((a.double() - b.double()).abs().max())


# ------------------------------------------------------------------------------------------------ times and levels
@pytest.mark.parametrize("name", [UNIPC, DPM, DEIS])
def test_multistep_timesteps_are_cut_to_integers(name):
    scheduler = peer.make(name, flow_shift=3.0)
    scheduler.set_timesteps(30)
    assert scheduler.timesteps.dtype == torch.int64
    cut = 1000.0 * scheduler.sigmas[:-1].double() - scheduler.timesteps
    assert 0.9 < float(cut.max()) < 1.0
    # The same levels through us: the network hears each one to float32's rounding.
    told = []

    def net(x, t):
        told.append(float(t))
        return torch.zeros_like(x)

    field = pfc.Field(net, sign=-1, time=lambda t: 1000.0 * (1.0 - t), time_shape="scalar")
    levels = [*scheduler.sigmas[:-1].double().tolist(), 0.0]
    pfc.Sampler(pfc.plan("euler", grid=pfc.grids.sigmas(levels)))(field, x0=torch.zeros(1, 4))
    np.testing.assert_allclose(told, 1000.0 * np.array(levels[:-1]), rtol=2.0**-23)


def test_cut_timesteps_cost_accuracy():
    """A second-order scheduler stops converging, because the field is asked about another time than the step's."""
    mixture, x0, _ = orders.problem("linear")
    x0 = torch.as_tensor(x0)[:, None]
    errors = {}
    for steps in (50, 400):
        sigmas = np.linspace(0.95, 0.05, steps + 1)
        exact = torch.as_tensor(mixture.flow(x0[:, 0].numpy(), 0.05, 0.95))[:, None]
        scheduler = peer.make(DPM, lower_order_final=False, final_sigmas_type="sigma_min")
        with peer.float64(DPM):
            cut = np.floor(1000.0 * sigmas[:-1]) / 1000.0
            found = peer.run(
                scheduler,
                sigmas,
                lambda x, s: torch.as_tensor(-mixture.of("velocity")(x.numpy(), 1.0 - s)),
                x0,
                told=cut,
            )[-1]
        net = pfc.Field(
            lambda x, t: torch.as_tensor(mixture.of("velocity")(x.numpy(), float(t))), time_shape="scalar"
        )
        mine = pfc.Sampler(pfc.plan("dpmpp_2m", grid=pfc.grids.sigmas(sigmas)))(net, x0=x0)
        errors[steps] = largest(found, exact), largest(mine, exact)
    # Eight times the steps: 64 times less error with us.
    assert errors[50][1] / errors[400][1] > 40
    assert errors[50][0] / errors[400][0] < 10
    assert errors[400][0] > 10 * errors[400][1]


def test_a_static_shift_is_applied_twice_to_the_last_level():
    """Their smallest level is shifted when the scheduler is made and again in set_timesteps(); Karras' and the beta levels are
    then laid between the results."""

    def shift(s):
        return 3.0 * s / (1.0 + 2.0 * s)

    once, twice = shift(0.001), shift(shift(0.001))
    for options in ({}, {"use_karras_sigmas": True}, {"use_beta_sigmas": True}):
        scheduler = peer.make(EULER, shift=3.0, **options)
        scheduler.set_timesteps(10)
        assert float(scheduler.sigmas[-2]) == pytest.approx(twice, rel=1e-5)
    for grid in (pfc.grids.karras(sigma_min=0.001), pfc.grids.exponential(sigma_min=0.001)):
        assert 1.0 - grid.shifted(3.0).times(10)[-2] == pytest.approx(once, rel=1e-12)


def test_schedulers_do_not_begin_at_the_noise():
    """DPM-Solver and DEIS begin at level 0.999, UniPC at 1 - 1e-6, whatever the model; our solvers leave level 1 itself."""
    for name, first in ((DPM, 0.999), (DEIS, 0.999), (UNIPC, 1.0 - 1e-6)):
        scheduler = peer.make(name)
        scheduler.set_timesteps(10)
        assert float(scheduler.sigmas[0]) == pytest.approx(first, abs=1e-7)
    sigmas = shifted(1.0, 0.0, 9)
    for solver, options in (("dpmpp_2m", {}), ("deis", {"variant": "logrho"}), ("unipc", {"variant": "bh1"})):
        assert bool(torch.isfinite(ours(solver, sigmas, **options)).all())


def test_deis_does_not_reach_the_data():
    """Their levels end with the last one twice, so that the last step moves nothing; given level 0 it is not finite."""
    scheduler = peer.make(DEIS)
    scheduler.set_timesteps(10)
    assert float(scheduler.sigmas[-1]) == float(scheduler.sigmas[-2]) > 0.05
    sigmas = scheduler.sigmas.double().numpy()
    states = peer.run(scheduler, sigmas, theirs, X0)
    assert largest(states[-1], states[-2]) < 1e-12
    to_data = np.append(sigmas[:-1], 0.0)
    assert not bool(torch.isfinite(peer.run(peer.make(DEIS), to_data, theirs, X0)[-1]).all())
    assert bool(torch.isfinite(ours("deis", to_data, variant="logrho")).all())


# ---------------------------------------------------------------------------------------------------- last steps
def test_unipc_bh1_is_not_finite_at_the_data():
    """Into level 0 their B(h) = -h is infinite and is multiplied by 0; before that both agree."""
    sigmas = shifted(0.9, 0.0, 9)
    states = peer.run(peer.make(UNIPC, solver_order=2, solver_type="bh1"), sigmas, theirs, X0)
    mine = ours("unipc", sigmas, variant="bh1")[1:]
    assert largest(states[-2], mine[-2]) < 1e-13
    assert not bool(torch.isfinite(states[-1]).any())
    assert bool(torch.isfinite(mine[-1]).all())


@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        (UNIPC, "unipc", {"solver_order": 3}),
        (DEIS, "deis", {"solver_order": 3, "lower_order_final": True}),
    ],
)
def test_orders_fall_before_the_end(name, solver, options):
    """Of 9 steps (of fewer than 15) theirs lowers the order of the last but one as well; ours keeps it."""
    sigmas = shifted(0.9, 0.0 if name == UNIPC else 0.02, 9)
    own = {"order": 3, "variant": "bh2" if solver == "unipc" else "logrho"}
    states, mine = peer.run(peer.make(name, **options), sigmas, theirs, X0), ours(solver, sigmas, **own)[1:]
    for i in range(7):
        assert largest(states[i], mine[i]) < 1e-13
    assert largest(states[7], mine[7]) > 1e-3
    # That option is the whole difference: without it theirs takes that step as ours does.
    kept = peer.make(name, **{**options, "lower_order_final": False})
    assert largest(peer.run(kept, sigmas[:-1], theirs, X0)[-1], mine[7]) < 1e-13


# --------------------------------------------------------------------------------------------------------- orders
def test_dpmpp_3m_lacks_a_factor_of_two():
    """Their third-order term is half of what the expansion asks for, which leaves order 2; ours has order 3."""
    mixture, x0, exact = orders.problem("linear")
    velocity, data = mixture.of("velocity"), mixture.of("data")
    errors = []
    for steps in (100, 200):
        times = orders.grid("linear", steps)
        past = [x0, *(mixture.flow(x0, times[0], t) for t in times[1:3])]
        scheduler = peer.make(DPM, solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min")
        peer.load(scheduler, 1.0 - np.asarray(times))
        # Begin at the third time, with the exact past: no ramp.
        scheduler.set_begin_index(2)
        scheduler.lower_order_nums = 3
        scheduler.model_outputs[1:] = [torch.as_tensor(data(past[j], times[j])) for j in (0, 1)]
        x = torch.as_tensor(past[2])
        with peer.float64(DPM):
            for i in range(2, steps):
                out = torch.as_tensor(-velocity(x.numpy(), times[i]))
                x = scheduler.step(out, scheduler.timesteps[i], x, return_dict=False)[0]
        errors.append(float(np.abs(x.numpy() - exact).max()))
    found = np.log2(errors[0] / errors[1])
    _, own = orders.measure("linear", "dpmpp_3m", {"start": "single"}, (100, 200))
    assert 1.7 < found < 2.3
    assert own > 2.7


def test_dpmpp_2m_in_minus_log_sigma_is_another_method():
    """A widely used "dpmpp_2m" takes lambda = -log sigma also for flow models. Its first-order part is the same on the linear
    path; the weight of its correction is that of another variable, as if alpha were 1."""
    sigmas = shifted(0.9, 0.02, 9)
    lam = -np.log(sigmas)
    x, past, states = X0, None, []
    for i, (s, e) in enumerate(itertools.pairwise(sigmas)):
        data = x - s * theirs(x, s)
        h = lam[i + 1] - lam[i]
        r = 0.0 if past is None else h / (lam[i] - lam[i - 1])
        x = e / s * x - np.expm1(-h) * (data + 0.5 * r * (data - past) if r else data)
        past = data
        states.append(x)
    mine = ours("dpmpp_2m", sigmas)[1:]
    assert largest(states[0], mine[0]) < 1e-13
    assert largest(states[1], mine[1]) > 1e-3
    # In lambda = log(alpha / sigma) the same loop is DPM-Solver++(2M), and ours.
    second = pfc.plan("dpmpp_2m", grid=pfc.grids.sigmas(sigmas)).rows[1]
    lam = np.log1p(-sigmas) - np.log(sigmas)
    h, before = lam[2] - lam[1], lam[1] - lam[0]
    weight = 0.5 * (1.0 - sigmas[2]) * np.expm1(-h) * h / before
    assert [term.coefficient for term in second.b] == pytest.approx([weight], rel=1e-12)


# ------------------------------------------------------------------------------------------------------ precision
def test_a_float64_state_stays_float64_with_us_alone():
    """Their Euler, Heun and DPM-Solver cast the state to float32 in every step, and return it as float64."""
    sigmas = shifted(0.9, 0.02, 9)
    options = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    with peer.float64(DPM):
        exact = peer.run(peer.make(DPM, **options), sigmas, theirs, X0)[-1]
    cast = peer.run(peer.make(DPM, **options), sigmas, theirs, X0)[-1]
    assert cast.dtype == torch.float64
    assert largest(cast, exact) > 1e-8
    assert largest(ours("dpmpp_2m", sigmas)[-1], exact) < 1e-13
