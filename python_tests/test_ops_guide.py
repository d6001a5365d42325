"""guide_ and combine_mixed_: against the papers' formulas in NumPy float64, and bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _library
from pyflowcore.ops import _plain
from reference import guidance as reference
from reference.tables import float64, table

pytestmark = pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
SAMPLES = (1, 2, 3, 4, 5, 7, 31, 127, 128, 129, 1023, 1024, 1025, 5000)
STATES = (torch.float32, torch.float64)
OUTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COPY = table(a=0.0, b_new=1.0)  # the state becomes the guided prediction
RULES = {
    "cfg": {},
    "star": {"star": True},
    "rescale": {"phi": 0.7},
    "apg": {"eta": 0.0, "norm": 2.0, "p": 0.9, "q": 0.6},
    "eta": {"eta": 0.3, "p": 1.0, "q": -0.4},
    "eta of data": {"eta": 0.25, "p": 0.0, "q": 1.0},
    "norm": {"norm": 0.5, "p": 1.0, "q": 0.2},
    "momentum": {"eta": 0.2, "norm": 3.0, "beta": -0.5, "p": 1.0, "q": 0.7},
    "momentum, rescaled": {"beta": 0.4, "p": 1.0, "q": 0.7, "phi": 0.5},
    "all": {"star": True, "eta": 0.1, "norm": 1.5, "phi": 0.4, "p": 1.0, "q": 0.8},
}


def values(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def line(star=False, eta=1.0, norm=None, beta=0.0, phi=0.0, p=0.0, q=1.0):
    return torch.tensor([[star, eta, norm or 0.0, beta, phi, p, q]], dtype=torch.float64)


def inputs(batch, sample, rule, state=torch.float32, out=torch.float32, conditions=1, seed=0):
    """A common part in all branches, so that none is orthogonal to the others."""
    common = values(1, batch, sample, dtype=torch.float64, seed=seed + 7)
    noise = values(conditions + 1, batch, sample, dtype=torch.float64, seed=seed)
    branches = (common + 0.7 * noise + 0.2).to(out)
    return {
        "x": values(batch, sample, dtype=state, seed=seed + 1),
        "branches": branches,
        "scales": 1.0 + 3.0 * values(conditions, batch, dtype=state, seed=seed + 2).abs(),
        "m": values(batch, sample, dtype=state, seed=seed + 3) if rule.get("beta") else None,
        "rules": line(**rule),
    }


def run(given, guide_=pfc.ops.guide_, mixed_=pfc.ops.combine_mixed_, split=False):
    """(the guided prediction, the weights, the momentum)."""
    branches, x = given["branches"], given["x"].clone()
    batch = x.shape[0]
    m = None if given["m"] is None else given["m"].clone()
    out, out2 = branches.flatten(0, 1), None
    if split:
        out, out2 = out[:-batch], branches[-1].clone()
    guidance = given["scales"][None]
    if guide_ is pfc.ops.guide_:
        mix = guide_(x, given["rules"], 0, out=out, out2=out2, guidance=guidance, m=m)
        mixed_(x, COPY, 0, out=out, out2=out2, mix=mix, m=m)
    else:
        point = given["rules"][0, 1] != 1.0 and given["rules"][0, 5] != 0.0
        mix = x.new_zeros(len(branches) + 1 + bool(point), batch)
        guide_(x, None, m, mix, x, out, out2, guidance, given["rules"], 0)
        mixed_(x, None, None, None, None, out, out2, mix, m, None, COPY, 0)
    return x, mix, m


def wanted(given, rule):
    branches = float64(given["branches"].to(given["x"].dtype))
    m = float64(given["m"]) if given["m"] is not None else None
    return reference.batch(
        branches[:-1], branches[-1], float64(given["scales"]), point=float64(given["x"]), m=m, **rule
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", RULES)
def test_against_the_formulas(name, out, state):
    rule, eps = RULES[name], torch.finfo(state).eps
    for sample in SAMPLES:
        if sample == 1 and rule.get("phi"):
            continue  # no spread: below
        given = inputs(3, sample, rule, state, out)
        found, _, m = run(given)
        right, moved = wanted(given, rule)
        scale = 1.0 + np.abs(right).max()
        np.testing.assert_allclose(float64(found), right, rtol=0, atol=40 * eps * scale, err_msg=f"{sample}")
        if m is not None:
            np.testing.assert_allclose(float64(m), moved, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("conditions", [2, 3, 7])
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.get("beta")])
def test_several_conditions(name, conditions):
    for sample in (5, 129, 2051):
        given = inputs(2, sample, RULES[name], torch.float64, torch.float64, conditions)
        np.testing.assert_allclose(
            float64(run(given)[0]), wanted(given, RULES[name])[0], rtol=1e-11, atol=1e-11
        )


def test_a_sample_of_several_stripes():
    """More than 64 chunks: the last level of the sum."""
    given = inputs(2, 70_001, RULES["all"], torch.float64, torch.float64)
    np.testing.assert_allclose(float64(run(given)[0]), wanted(given, RULES["all"])[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", RULES)
def test_one_scale_for_all_and_a_branch_of_its_own(name):
    given = inputs(3, 37, RULES[name])
    given["scales"] = given["scales"][:, :1]
    assert torch.equal(run(given)[0], run(given, split=True)[0])
    wide = given | {"scales": given["scales"].expand(1, 3).contiguous()}
    assert torch.equal(run(given)[0], run(wide)[0])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", RULES)
def test_bits_on_every_instruction_set_and_in_plain_torch(name, out, state):
    before = pfc.cpu_isa()
    conditions = (1, 3) if not RULES[name].get("beta") else (1,)
    try:
        for sample in (1, 2, 5, 63, 130, 1025, 3000):
            for count in conditions:
                given = inputs(2, sample, RULES[name], state, out, count)
                plain = run(given, _plain.guide_, _plain.combine_mixed_)
                for isa in _library.cpu_isas():
                    pfc.select_cpu_isa(isa)
                    for a, b in zip(plain, run(given), strict=True):
                        assert (a is None and b is None) or torch.equal(a, b), (isa, sample, count)
    finally:
        pfc.select_cpu_isa(before)


@pytest.mark.parametrize("name", RULES)
def test_bits_alone_in_a_batch_and_on_two_threads(name):
    given = inputs(40, 3001, RULES[name])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(given))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    for i in (0, 17, 39):
        one = {
            "x": given["x"][i : i + 1], "branches": given["branches"][:, i : i + 1], "rules": given["rules"],
            "scales": given["scales"][:, i : i + 1], "m": None if given["m"] is None else given["m"][i : i + 1],
        }  # fmt: skip
        assert torch.equal(run(one)[0][0], results[0][0][i])


def cfg(given):
    """By combine_."""
    x = given["x"].clone()
    out = given["branches"].flatten(0, 1)
    pfc.ops.combine_(x, COPY, 0, out=out, guidance=given["scales"][None])
    return x


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("conditions", [1, 3])
def test_what_asks_for_nothing_is_cfg_to_the_bit(state, conditions):
    for rule in ({}, {"eta": 1.0, "p": 1.0, "q": 0.3}, {"norm": 1e9, "p": 1.0, "q": 0.3}, {"phi": 0.0}):
        given = inputs(3, 1027, rule, state, state, conditions)
        assert torch.equal(run(given)[0], cfg(given))


def test_star_with_s_of_one_is_cfg_to_the_bit():
    """c - u orthogonal to u, exactly."""
    given = inputs(2, 64, {"star": True})
    u = values(2, 32, seed=4)
    given["branches"] = torch.stack([torch.cat([u, 3 * u], 1), torch.cat([u, 0 * u], 1)])
    assert torch.equal(run(given)[0], cfg(given))


def test_a_scale_of_one_is_the_branch_itself():
    for name, rule in RULES.items():
        given = inputs(3, 300, rule)
        given["scales"][0, 1] = 1.0
        assert torch.equal(run(given)[0][1], given["branches"][0, 1]), name


@pytest.mark.parametrize("name", RULES)
def test_equal_branches_are_that_branch(name):
    """No difference to guide along, whatever else is asked (but for a momentum's past)."""
    given = inputs(2, 100, RULES[name])
    given["branches"][1] = given["branches"][0]
    if given["m"] is not None:
        given["m"].zero_()
    torch.testing.assert_close(run(given)[0], given["branches"][0], rtol=1e-6, atol=1e-6)
    if not RULES[name].get("star"):
        assert torch.equal(run(given)[0], given["branches"][0])


def test_zero_norms():
    """u = 0 leaves s at 1; c = 0 has no direction; a constant prediction has no spread. Nothing is NaN."""
    for name, rule in RULES.items():
        for zero in ((0,), (1,), (0, 1)):
            given = inputs(2, 33, rule)
            given["x"].zero_()
            for j in zero:
                given["branches"][j] = 0.0
            found, mix, _ = run(given)
            assert bool(torch.isfinite(found).all()) and bool(torch.isfinite(mix).all()), (name, zero)
    given = inputs(2, 33, {"star": True})
    given["branches"][1] = 0.0
    torch.testing.assert_close(run(given)[0], given["scales"][0][:, None] * given["branches"][0])
    for constant in (1, 33):  # samples of one element, and of equal ones
        given = inputs(2, constant, {"phi": 0.7})
        given["branches"][:] = given["branches"][:, :, :1]
        assert torch.equal(run(given)[0], cfg(given))


def test_empty():
    for batch, sample in ((0, 4), (3, 0)):
        given = inputs(batch, sample, RULES["all"])
        assert run(given)[0].shape == (batch, sample)


def test_strides():
    given = inputs(3, 50, RULES["all"], out=torch.bfloat16)
    x = given["x"].clone()
    out = given["branches"].reshape(6, 50)
    spread = torch.stack([out, out], -1)[..., 0]
    mix = pfc.ops.guide_(x, given["rules"], 0, out=spread, guidance=given["scales"][None])
    assert torch.equal(mix, run(given)[1])


@pytest.mark.parametrize("name", ["star", "apg", "momentum"])
def test_opcheck(name):
    given = inputs(2, 9, RULES[name])
    mix = given["x"].new_zeros(4 if name != "star" else 3, 2)
    out, scratch = given["branches"].reshape(4, 9), torch.zeros(64, dtype=torch.float64)
    arguments = (
        given["x"],
        None,
        given["m"],
        mix,
        scratch,
        out,
        None,
        given["scales"][None],
        given["rules"],
        0,
    )
    torch.library.opcheck(torch.ops.pyflowcore.guide_.default, arguments)
    arguments = (given["x"], None, None, None, None, out, None, mix, given["m"], None, COPY, 0)
    torch.library.opcheck(torch.ops.pyflowcore.combine_mixed_.default, arguments)


REFUSED = {
    "mix rows": ({"mix": torch.zeros(4, 2)}, ["mix", "[3, 2]", "[4, 2]"]),
    "mix dtype": ({"mix": torch.zeros(3, 2).double()}, ["mix", "state's dtype"]),
    "scratch": ({"scratch": torch.zeros(3, dtype=torch.float64)}, ["scratch", "10", "3"]),
    "scratch dtype": ({"scratch": torch.zeros(64)}, ["scratch", "float64"]),
    "rules": ({"rules": torch.zeros(1, 6, dtype=torch.float64)}, ["rules", "7"]),
    "rule not finite": ({"rules": line(phi=float("nan"))}, ["rules", "not finite"]),
    "row": ({"row": 1}, ["row is 1"]),
    "one branch": ({"out": torch.zeros(2, 9)}, ["two branches", "1"]),
    "out": ({"out": torch.zeros(4, 8)}, ["out", "[4, 8]"]),
    "guidance": ({"guidance": torch.ones(2, 1)}, ["guidance", "[1, 1 or 2]"]),
    "momentum and star": ({"m": torch.zeros(2, 9), "rules": line(star=True)}, ["m", "CFG-Zero"]),
    "momentum at q = 0": ({"m": torch.zeros(2, 9), "rules": line(q=0.0)}, ["m", "q = 0"]),
    "momentum's shape": ({"m": torch.zeros(2, 8)}, ["m", "[2, 8]"]),
    "momentum of several": ({"m": torch.zeros(2, 9), "out": torch.zeros(6, 9)}, ["m", "3"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    options, words = REFUSED[case]
    arguments = {
        "x": torch.zeros(2, 9), "rules": line(), "row": 0, "out": torch.zeros(4, 9), "guidance": torch.ones(1, 1),
    } | options  # fmt: skip
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        pfc.ops.guide_(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_a_row_without_an_output_predicts_from_its_point():
    """q = 0: where CFG-Zero* takes the velocity to be zero."""
    x, y = values(2, 35), values(2, 35, seed=1)
    row = table(p=0.7, q=0.0, a=0.5, b_new=2.0, store=0)
    slots = torch.full((1, 2, 35), torch.nan)
    for combine_ in (pfc.ops.combine_, None):
        now = x.clone()
        if combine_ is not None:
            combine_(now, row, 0, y=y, slots=slots)
        else:
            _plain.combine_(now, y, None, None, slots, None, None, None, None, row, 0)
        torch.testing.assert_close(slots[0], 0.7 * y)
        torch.testing.assert_close(now, 0.5 * x + 1.4 * y)
    inside = [t.double().requires_grad_() for t in (x, y)]
    assert torch.autograd.gradcheck(lambda a, b: pfc.ops.combine(a, row, 0, y=b), inside)
