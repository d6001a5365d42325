"""Our plans and diffusers' schedulers on the same noise levels, starts, noise and field: the same trajectory.

diffusers keeps its levels in float32 and most of its schedulers cast the state to float32 in every step, so it is compared
twice: its formulas, made to compute in float64, to 1e-13; and as it is, within the roundings of float32. Where the two differ
on purpose, test_parity_differences.py says how.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore.ops.randn import STREAMS
from reference import fields, peer

diffusers = pytest.importorskip(
    "diffusers", reason="parity is measured against diffusers, which is not installed"
)
# Theirs: NumPy's functions on torch's numbers.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
UNIPC, DPM, DEIS = "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler"
LTX = "LTXEulerAncestralRFScheduler"

STEPS = 9
SEEDS = [5, 2**40]
VELOCITY = fields.Mixture("linear", [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6]).of("velocity")
X0 = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)))


def levels(high, low):
    """STEPS + 1 levels with a shift of 3."""
    s = np.linspace(high, low, STEPS + 1)
    return 3.0 * s / (1.0 + 2.0 * s)


NOISE, NEARLY = levels(1.0, 0.0), np.concatenate([[1.0 - 1e-6], levels(1.0, 0.0)[1:]])
PARTIAL, INNER = levels(0.9, 0.0), levels(0.9, 0.02)
# Grids that end above 0: there diffusers, too, keeps the order of the last steps when told to.
KEEP = {"lower_order_final": False}
KEEP_DPM = {**KEEP, "final_sigmas_type": "sigma_min"}
SDE = {"algorithm_type": "sde-dpmsolver++"}

# name: (scheduler, its options, our solver, its options, levels)
CASES = {
    **{f"euler-{n}": (EULER, {}, "euler", {}, s) for n, s in (("noise", NOISE), ("inner", INNER))},
    **{f"heun-{n}": (HEUN, {}, "heun", {}, s) for n, s in (("noise", NOISE), ("inner", INNER))},
    "dpmpp_2m-noise": (DPM, {}, "dpmpp_2m", {}, NOISE),
    "dpmpp_2m-partial": (DPM, {}, "dpmpp_2m", {}, PARTIAL),
    "dpmpp_2m-inner": (DPM, KEEP_DPM, "dpmpp_2m", {}, INNER),
    "dpmpp_1s-noise": (DPM, {"solver_order": 1}, "dpmpp_1s", {}, NOISE),
    "dpmpp_2m_sde-noise": (DPM, SDE, "dpmpp_2m_sde", {}, NOISE),
    "dpmpp_2m_sde-partial": (DPM, SDE, "dpmpp_2m_sde", {}, PARTIAL),
    "dpmpp_2m_sde-inner": (DPM, {**SDE, **KEEP_DPM}, "dpmpp_2m_sde", {}, INNER),
    # UniPC to level 0: the last step is of order 1 with both; bh1 is not finite there in diffusers.
    **{
        f"unipc-{k}-bh2-{n}": (UNIPC, {"solver_order": k}, "unipc", {"order": k}, s)
        for k in (1, 2)
        for n, s in (("nearly noise", NEARLY), ("partial", PARTIAL))
    },
    **{
        f"unipc-{k}-{b}-inner": (
            UNIPC, {"solver_order": k, "solver_type": b, **KEEP}, "unipc", {"order": k, "variant": b}, INNER
        )
        for k in (1, 2, 3)
        for b in ("bh1", "bh2")
    },
    **{
        f"deis-{k}-inner": (DEIS, {"solver_order": k, **KEEP}, "deis", {"order": k, "variant": "logrho"}, INNER)
        for k in (1, 2, 3)
    },
    "euler_ancestral-noise": (LTX, {"eta": 0.7}, "euler_ancestral", {"eta": 0.7}, NOISE),
    "consistency-noise": (EULER, {"stochastic_sampling": True}, "consistency", {}, NOISE),
}  # fmt: skip
DRAWS_ITSELF = ("euler_ancestral", "consistency")


def theirs(x, sigma):
    """The velocity as diffusers means it, d x / d sigma; evaluated in float64, given in x's dtype."""
    return torch.as_tensor(-VELOCITY(x.double().numpy(), 1.0 - sigma)).to(x.dtype)


FIELD = pfc.Field(
    lambda x, t: theirs(x, float(t) / 1000.0), sign=-1, time=lambda t: 1000.0 * (1.0 - t), time_shape="scalar"
)


def noise(dtype):
    return lambda n: pfc.randn(SEEDS, X0.shape[1:], stream=STREAMS["plan"], draw=n, dtype=dtype)


def make(name, options):
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return peer.make(name, **options)


def run_theirs(scheduler, sigmas, dtype, solver, of_levels=None):
    of_levels = of_levels or dtype
    if solver in DRAWS_ITSELF:
        with peer.noise(type(scheduler).__name__, noise(dtype)):
            return peer.run(scheduler, sigmas, theirs, X0.to(dtype), dtype=of_levels)
    draw = noise(dtype) if solver == "dpmpp_2m_sde" else None
    return peer.run(scheduler, sigmas, theirs, X0.to(dtype), dtype=of_levels, draw=draw)


def run_ours(solver, options, sigmas, dtype):
    plan = pfc.plan(solver, grid=pfc.grids.sigmas(sigmas), **options)
    return pfc.Sampler(plan)(FIELD, x0=X0.to(dtype), seeds=SEEDS, return_trajectory=True).states


@pytest.mark.parametrize("case", CASES)
def test_formulas_agree_in_float64(case):
    name, options, solver, own, sigmas = CASES[case]
    scheduler = make(name, options)
    with peer.float64(name):
        states = run_theirs(scheduler, sigmas, torch.float64, solver)
    ours = run_ours(solver, own, sigmas, torch.float64)
    if name == HEUN:  # theirs come after every evaluation; a step has two, the last one into level 0 has one
        states = [*states[1::2], *states[len(states) // 2 * 2 :]]
    assert len(states) == STEPS == len(ours) - 1
    for found, expected in zip(states, ours[1:], strict=True):
        assert found.dtype == torch.float64
        # diffusers' ancestral step adds 1e-12 to the squared alpha that it divides by, 2e-3 at the first level.
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-9 if name == LTX else 1e-13)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][-1] is not NEARLY])
def test_float32_agrees_within_its_roundings(case):
    name, options, solver, own, sigmas = CASES[case]
    scheduler = make(name, options)
    sigmas = np.float32(sigmas).astype(np.float64)
    exact = run_ours(solver, own, sigmas, torch.float64)
    ours = run_ours(solver, own, sigmas, torch.float32)[-1]
    # Their coefficients of DEIS are differences of integrals that nearly cancel, in the precision of the levels: of order 3
    # they are wrong by 1e-5 in float32. With float64 levels what remains is the arithmetic on tensors.
    found = run_theirs(scheduler, sigmas, torch.float32, solver, torch.float64 if name == DEIS else None)[-1]
    assert found.dtype == ours.dtype == torch.float32
    # Ten operations a step round by half a unit in the last place, 2^-24 relative, of numbers as large as the state; theirs
    # also round the logarithms of which the coefficients are made.
    bound = 10 * STEPS * 2.0**-24 * float(exact.abs().max())
    start = float((X0 - X0.float().double()).abs().max())
    assert float((ours.double() - exact[-1]).abs().max()) < bound + 10 * start
    assert float((found.double() - exact[-1]).abs().max()) < bound + 10 * start
