"""Options of solvers: what each takes, what is refused and how, defaults, counts of evaluations, descriptions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import pyflowcore as pfc
from pyflowcore import _core
from reference import catalogue

VALUES = {
    "order": 2, "variant": "bh1", "start": "single", "eta": 0.5, "diffusion": "sine", "s_churn": 1.0, "s_min": 0.1,
    "s_max": 5.0, "s_noise": 1.0,
}  # fmt: skip
TAKES = {
    **{f"ab{k}": {"start"} for k in (1, 2, 3, 4)}, "dpmpp_2m": {"start"}, "dpmpp_3m": {"start"}, "dpmpp_2m_sde": {"eta"},
    "unipc": {"order", "variant", "start"}, "deis": {"order", "variant", "start"}, "res": {"order"},
    "edm_heun": {"s_churn", "s_min", "s_max", "s_noise"}, "euler_maruyama": {"diffusion"},
    "stochastic_heun": {"diffusion"}, "euler_ancestral": {"eta"},
}  # fmt: skip


@pytest.mark.parametrize(("solver", "option"), list(itertools.product(sorted(pfc.solvers()), VALUES)))
def test_an_option_is_taken_or_refused(solver, option):
    value = "logrho" if (solver, option) == ("deis", "variant") else VALUES[option]
    if option in TAKES.get(solver, ()):
        pfc.plan(solver, 5, **{option: value})
        return
    with pytest.raises(ValueError, match=option) as caught:
        pfc.plan(solver, 5, **{option: value})
    for word in (f"'{solver}'", "last", *TAKES.get(solver, ())):
        assert word in str(caught.value)


REFUSED = {
    "order too high": (lambda: pfc.plan("unipc", 5, order=4), ["order is 4", "'unipc'", "1 to 3"]),
    "deis order": (lambda: pfc.plan("deis", 5, order=5), ["order is 5", "'deis'", "1 to 4"]),
    "res order": (lambda: pfc.plan("res", 5, order=1), ["order is 1", "'res'", "2 to 3"]),
    "order zero": (lambda: pfc.plan("unipc", 5, order=0), ["order", "0"]),
    "order float": (lambda: pfc.plan("unipc", 5, order=2.0), ["order", "float"]),
    "variant": (lambda: pfc.plan("unipc", 5, variant="vary_coeff"), ["variant", "'unipc'", "'vary_coeff'", "bh2, bh1"]),
    "variant of another": (lambda: pfc.plan("deis", 5, variant="bh1"), ["variant", "'bh1'", "rho, logrho"]),
    "variant type": (lambda: pfc.plan("deis", 5, variant=3), ["variant", "int"]),
    "start": (lambda: pfc.plan("ab2", 5, start="full"), ["start", "'ramp'", "'single'", "'full'"]),
    "eta negative": (lambda: pfc.plan("dpmpp_2m_sde", 5, eta=-0.1), ["eta", "-0.1"]),
    "eta nan": (lambda: pfc.plan("dpmpp_2m_sde", 5, eta=float("nan")), ["eta", "nan"]),
    "eta infinite": (lambda: pfc.plan("dpmpp_2m_sde", 5, eta=float("inf")), ["eta", "inf"]),
    "eta past the end": (lambda: pfc.plan("euler_ancestral", 5, eta=1.5), ["eta", "1.5"]),
    "eta type": (lambda: pfc.plan("euler_ancestral", 5, eta="1"), ["eta", "str"]),
    "churn negative": (lambda: pfc.plan("edm_heun", 5, s_churn=-1.0), ["s_churn", "-1"]),
    "churn levels": (lambda: pfc.plan("edm_heun", 5, s_min=2.0, s_max=1.0), ["s_max", "1.0", "2.0"]),
    "churn noise": (lambda: pfc.plan("edm_heun", 5, s_noise=-1.0), ["s_noise", "-1"]),
    "churn at the highest level": (
        lambda: pfc.plan("edm_heun", 5, path="ve", s_churn=1.0), ["s_churn", "highest", "s_max"],
    ),
    "diffusion name": (
        lambda: pfc.plan("euler_maruyama", 5, diffusion="sbdm"), ["diffusion", "'sbdm'", "constant, sigma, sigma/alpha"],
    ),
    "diffusion type": (lambda: pfc.plan("euler_maruyama", 5, diffusion=[1.0]), ["diffusion", "list"]),
    "diffusion negative": (lambda: pfc.plan("euler_maruyama", 5, diffusion=-1), ["diffusion", "-1"]),
    "diffusion infinite at 0": (lambda: pfc.plan("euler_maruyama", 5, diffusion="sigma/alpha"), ["diffusion", "inf", "grid"]),
    "heun's too": (lambda: pfc.plan("stochastic_heun", 5, diffusion="sigma/alpha"), ["diffusion", "inf", "grid"]),
    "diffusion full at 1": (
        lambda: pfc.plan("stochastic_heun", 5, diffusion="constant", last="full"), ["stochastic_heun", "t = 1", "score"],
    ),
    "noise at 0": (lambda: pfc.plan("dpmpp_2m", 5, prediction="noise"), ["'noise'", "data", "t = 0", "linear"]),
    "noise at 0 with a start": (
        lambda: pfc.plan("unipc", 5, prediction="noise", start="single"), ["'noise'", "t = 0", "linear"],
    ),
    "velocity of a polynomial path": (
        lambda: pfc.plan("unipc", 5, path="polynomial"), ["'velocity'", "t = 0", "polynomial"],
    ),
    "heun in full on vp": (lambda: pfc.plan("heun", 5, path="vp", prediction="data", last="full"), ["'data'", "t = 1", "vp"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_defaults():
    assert pfc.plan("unipc", 6) == pfc.plan("unipc", 6, order=2, variant="bh2", start="ramp")
    assert pfc.plan("deis", 6) == pfc.plan("deis", 6, order=3, variant="rho", start="ramp")
    assert pfc.plan("res", 6) == pfc.plan("res", 6, order=2)
    assert pfc.plan("dpmpp_2m_sde", 6) == pfc.plan("dpmpp_2m_sde", 6, eta=1.0)
    plain = pfc.plan("edm_heun", 6)
    assert plain == pfc.plan("edm_heun", 6, s_churn=0.0, s_min=0.0, s_max=float("inf"), s_noise=1.0)
    assert plain.draws == 0


@pytest.mark.parametrize("name", catalogue.EVERY)
def test_descriptions_hold_everything(name):
    """Rows carry the whole plan: names of options need not travel."""
    solver, options = catalogue.EVERY[name]
    plan = pfc.plan(solver, grid=[0.1, 0.2, 0.5, 0.8, 1.0], **options)
    again = pfc.Plan.from_json(plan.to_json())
    assert again == plan
    np.testing.assert_array_equal(again.table, plan.table)
    assert str(plan).count("\n") == len(plan.rows)


@pytest.mark.parametrize("nfe", [1, 3, 4, 5, 9, 20])
@pytest.mark.parametrize("name", [name for name in catalogue.EVERY if "sigma/alpha" not in name])
def test_nfe_with_options(name, nfe):
    solver, options = catalogue.EVERY[name]
    if pfc.plan(solver, 1, **options).nfe > nfe:
        with pytest.raises(ValueError, match=f"nfe is {nfe}, but one step of {solver}"):
            pfc.plan(solver, nfe=nfe, **options)
        return
    plan = pfc.plan(solver, nfe=nfe, **options)
    assert plan.nfe <= nfe < pfc.plan(solver, plan.steps + 1, **options).nfe


def test_evaluations_and_memory():
    """One evaluation a step for every multistep method, and no more slots than its history."""
    for name, slots in (
        ("ab4", 4),
        ("dpmpp_2m", 2),
        ("dpmpp_3m", 3),
        ("unipc", 3),
        ("deis", 3),
        ("euler", 0),
        ("heun", 1),
    ):
        plan = pfc.plan(name, 12, grid=pfc.grids.shifted(2.0))
        assert plan.slots == slots, name
        if name != "heun":
            assert plan.nfe == 12
            # The point of every evaluation is the state: no buffer beside it.
            assert all(row.point_is_state for row in plan.rows)
    assert pfc.plan("unipc", 12, order=3).slots == 4
    # A single-step start of order 3 from t = 0: the prediction there serves no later step, so three steps of RK3's kind.
    assert pfc.plan("dpmpp_3m", 12, start="single").nfe == 12 + 3 * 2
    assert pfc.plan("ab3", 12, start="single").nfe == 12 + 2 * 2
    assert {entry["name"] for entry in _core.solvers()} == set(pfc.solvers())
