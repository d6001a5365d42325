"""guide_ where numbers are very large, very small or not finite: against the formulas in NumPy, with nothing in common.

The reference takes the values as they are stored and computes c - s u itself, in extended precision.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_ops_guide import COPY, cfg, inputs, line, run, values

import pyflowcore as pfc
from pyflowcore.ops import _plain, _plain_guide
from reference import guidance as reference
from reference.tables import float64

pytestmark = pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
# In the prediction's own space, so that the point does not hide an error.
RULES = {
    "star": {"star": True},
    "star, eta": {"star": True, "eta": 0.3},
    "star, norm": {"star": True, "norm": 4.0},
    "star, phi": {"star": True, "phi": 0.6},
    "star and all": {"star": True, "eta": 0.2, "norm": 4.0, "phi": 0.4, "p": 1.0, "q": 0.8},
}
RATIOS = [10.0**-k for k in (0, 2, 4, 6, 8, 12, 20, 30, 34, 36, 37, 38, 39, 40)]
FLOAT32 = float(np.finfo(np.float32).max)


def wanted(given, rule, cut=FLOAT32):
    """Sample by sample; where s is no number of the state's dtype, u counts as zero."""
    branches = given["branches"].double().numpy().astype(np.longdouble)
    scales, point, answers = given["scales"].double().numpy(), float64(given["x"]), []
    for i in range(branches.shape[1]):
        cs, u = branches[:-1, i], branches[-1, i]
        asked = np.abs(scales[:, i] - np.eye(len(cs))[0]).sum()
        s = (cs[0] @ u) / (u @ u)
        exact = dict(rule)
        if abs(1 - s) * max(1.0, asked) > cut:
            exact["star"] = False
        answers.append(
            reference.one(list(cs), u, scales[:, i], point=point[i].astype(np.longdouble), **exact)[0]
        )
    return np.stack(answers).astype(np.float64)


def small_u(rule, ratio, conditions, state=torch.float32):
    given = inputs(3, 257, rule, state, state, conditions)
    given["branches"][-1] = (given["branches"][-1].double() * ratio).to(state)
    return given


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("conditions", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_star_is_as_accurate_where_u_is_small(name, conditions, ratio):
    given = small_u(RULES[name], ratio, conditions)
    right = wanted(given, RULES[name])
    for found in (run(given)[0], run(given, _plain.guide_, _plain.combine_mixed_)[0]):
        np.testing.assert_allclose(float64(found), right, rtol=0, atol=4e-6 * np.abs(right).max())


@pytest.mark.parametrize("conditions", [1, 3])
@pytest.mark.parametrize("ratio", [1e-3, 1e-8, 1e-37])
def test_star_against_eager_float32(ratio, conditions):
    """s u + w (c_1 - s u) + ..., s in float64: no more than a few times eager float32's own error."""
    given = small_u(RULES["star"], ratio, conditions)
    *cs, u = given["branches"]
    w = given["scales"][:, :, None]
    s = ((cs[0].double() * u.double()).sum(1) / u.double().square().sum(1)).float()[:, None]
    eager = s * u + sum(w[j] * (c - s * u) for j, c in enumerate(cs))
    right = wanted(given, RULES["star"])
    size = np.abs(right).max()
    error, allowed = (np.abs(float64(value) - right).max() for value in (run(given)[0], eager))
    assert error <= 4 * allowed + 1e-7 * size


@pytest.mark.parametrize("ratio", [1e-4, 1e-20, 1e-100, 1e-140])
def test_star_of_a_float64_state(ratio):
    given = small_u(RULES["star and all"], ratio, 2, torch.float64)
    right = wanted(given, RULES["star and all"], np.finfo(np.float64).max)
    np.testing.assert_allclose(float64(run(given)[0]), right, rtol=0, atol=1e-13 * np.abs(right).max())


def test_a_scale_that_is_no_float32_is_a_zero_u():
    """|c| / |u| = 1e40: to the bit what u of zero gives, but for u itself, which is far below c's rounding."""
    given = small_u(RULES["star"], 1e-40, 1)
    assert torch.equal(run(given)[0], cfg(given))
    assert not run(given)[1][[0, 2]].any()


def test_the_differentiable_version_where_u_is_small():
    """Finite gradients, and those of s u + w (c - s u)."""
    for ratio in (1.0, 1e-4, 1e-30, 1e-45):
        c, u = values(2, 19, seed=1) + 0.3, ((values(2, 19, seed=2) + 0.3).double() * ratio).float()
        w = torch.tensor([2.0, 5.0])
        leaves = [value.clone().requires_grad_() for value in (c, w)]
        mix, _ = _plain_guide.guide(
            line(star=True)[0].tolist(), [leaves[0], u], [leaves[1]], c, None, torch.float32
        )
        grads = torch.autograd.grad(_plain_guide.mixed(mix, [leaves[0], u], c, None).sum(), leaves)
        exact = [value.double().requires_grad_() for value in (c, w)]
        wide = u.double()
        s = (
            (exact[0] * wide).sum(1, keepdim=True) / wide.square().sum(1, keepdim=True)
            if ratio > 1e-37
            else 1.0
        )
        scale = exact[1][:, None]
        right = torch.autograd.grad((s * wide + scale * (exact[0] - s * wide)).sum(), exact)
        for found, expected in zip(grads, right, strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", [*RULES, "apg", "phi"])
def test_a_scale_of_one_beside_a_u_that_is_not_finite(name, bad):
    """Its weights are zero, so that all elements but u's own are c_1's bits; and the differentiable version agrees."""
    rule = RULES.get(name) or {"apg": {"eta": 0.0, "norm": 2.0}, "phi": {"phi": 0.7}}[name]
    given = inputs(3, 300, rule)
    given["scales"][0, 1] = 1.0
    given["branches"][1, 1, 17] = bad
    elsewhere = torch.arange(300) != 17
    for found, mix, _ in (run(given), run(given, _plain.guide_, _plain.combine_mixed_)):
        assert not mix[:, 1].any()
        assert torch.equal(found[1, elsewhere], given["branches"][0, 1, elsewhere])
        assert bool(torch.isfinite(found[[0, 2]]).all())


def test_a_scale_of_one_keeps_its_gradient():
    c, u, w = values(1, 30, seed=1), values(1, 30, seed=2), torch.ones(1, requires_grad=True)
    mix, _ = _plain_guide.guide(line(phi=0.0)[0].tolist(), [c, u], [w], c, None, torch.float32)
    (grad,) = torch.autograd.grad(_plain_guide.mixed(mix, [c, u], c, None).sum(), w)
    torch.testing.assert_close(grad, (c - u).sum(1))


@pytest.mark.parametrize("size", [1e160, 1e200, 1e-170, 1e-300])
@pytest.mark.parametrize("name", [*RULES, "apg", "phi"])
def test_squares_beyond_float64_give_no_nan(name, size):
    rule = RULES.get(name) or {"apg": {"eta": 0.0, "norm": 2.0}, "phi": {"phi": 0.7}}[name]
    for parts in ((0, 1), (0,), (1,)):
        given = inputs(2, 40, rule, torch.float64, torch.float64)
        for j in parts:
            given["branches"][j] *= size
        for found, mix, _ in (run(given), run(given, _plain.guide_, _plain.combine_mixed_)):
            assert bool(torch.isfinite(found).all()) and bool(torch.isfinite(mix).all()), parts


def test_rescaling_a_mean_far_beyond_the_spread():
    """In float64, as docs/guidance.md says: the rounding times (mean / std)^2."""
    for mean, error in ((1e2, 1e-11), (1e4, 1e-7), (1e6, 1e-3)):
        given = inputs(2, 500, {"phi": 0.7}, torch.float64, torch.float64)
        given["branches"] += mean
        found, right = float64(run(given)[0]), wanted(given, {"phi": 0.7})
        np.testing.assert_allclose(found / right, 1.0, rtol=0, atol=error)


def shares(name):
    """Arguments of guide_, two of which share memory."""
    x, out = torch.zeros(2, 8), torch.zeros(4, 8)
    arguments = {"out": out, "guidance": torch.ones(1, 2), "rules": line(eta=0.5, p=1.0, beta=0.5)}
    if name == "m is x":
        return x, arguments | {"m": x}, ["x", "m"]
    if name == "m is out":
        return x, arguments | {"m": out[:2]}, ["out", "m"]
    if name == "m is y":
        y = torch.zeros(2, 8)
        return x, arguments | {"y": y, "m": y}, ["y", "m"]
    if name == "mix in guidance":
        memory = torch.zeros(4, 2)
        return x, arguments | {"guidance": memory[3:], "mix": memory}, ["guidance", "mix"]
    if name == "mix in x":
        return x, arguments | {"mix": x.view(-1)[:8].view(4, 2)}, ["x", "mix"]
    memory = torch.zeros(64, dtype=torch.float64)
    if name == "scratch in rules":
        memory[:7] = arguments["rules"][0]
        return x, arguments | {"scratch": memory, "rules": memory[:7][None]}, ["rules", "scratch"]
    if name == "scratch in out":
        return x, arguments | {"scratch": memory, "out": memory[:32].view(4, 8)}, ["out", "scratch"]
    return (
        x,
        arguments | {"m": memory.view(torch.float32)[:16].view(2, 8), "scratch": memory},
        ["m", "scratch"],
    )


@pytest.mark.parametrize(
    "name",
    [
        "m is x",
        "m is out",
        "m is y",
        "mix in guidance",
        "mix in x",
        "scratch in rules",
        "scratch in out",
        "scratch in m",
    ],
)
def test_guide_refuses_shared_memory(name):
    x, arguments, words = shares(name)
    with pytest.raises(ValueError, match="overlap in memory") as error:
        pfc.ops.guide_(x, row=0, **arguments)
    assert all(word in str(error.value).split() for word in words), error.value


def test_combine_mixed_refuses_weights_in_the_state():
    memory = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="mix is read and x is written"):
        pfc.ops.combine_mixed_(memory, COPY, 0, out=torch.zeros(4, 8), mix=memory.view(-1)[:6].view(3, 2))
