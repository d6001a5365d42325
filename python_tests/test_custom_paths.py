"""Paths given by functions: the named ones written as such must give the named ones' numbers, everywhere."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore.bns import to_plan, unroll
from reference import catalogue, fields, paths
from reference.torch_fields import as_net

HALF_PI = math.pi / 2


def _vp_log_alpha(t):
    return -0.25 * (1 - t) ** 2 * 19.9 - 0.05 * (1 - t)


FUNCTIONS = {
    "linear": (lambda t: t, lambda t: 1 - t),
    "trigonometric": (lambda t: torch.sin(HALF_PI * t), lambda t: torch.cos(HALF_PI * t)),
    "vp": (lambda t: torch.exp(_vp_log_alpha(t)), lambda t: torch.sqrt(-torch.expm1(2 * _vp_log_alpha(t)))),
    "polynomial": (lambda t: t**2, lambda t: 1 - t**2),
    "linear_vp": (lambda t: t, lambda t: torch.sqrt((1 - t) * (1 + t))),
    "ve": (lambda t: 1.0, lambda t: 80 * (1 - t)),
}
PATHS = {name: pfc.paths.custom(*functions, name=f"my {name}") for name, functions in FUNCTIONS.items()}
PREDICTIONS = ("velocity", "data", "noise", "score", "v")


@pytest.mark.parametrize("name", paths.EVERY)
def test_coefficients_and_their_derivatives(name):
    t = np.concatenate([np.linspace(0.0, 1.0, 101), [1e-7, 1 - 1e-7]])
    for ours, theirs in zip(PATHS[name].coefficients(t), pfc.paths.get(name).coefficients(t), strict=True):
        assert ours.dtype == np.float64
        # sigma' is minus infinity at t = 1 of two of them, for which autodiff may have no number.
        finite = np.isfinite(theirs)
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-12, atol=1e-15)
        assert not np.isfinite(ours[~finite]).any()
    assert PATHS[name].coefficients(0.25)[0].shape == ()


def test_given_derivatives_are_used():
    calls = []

    def dsigma(t):
        calls.append(t)
        return -torch.ones_like(t)

    path = pfc.paths.custom(lambda t: t, lambda t: 1 - t, dalpha=lambda t: 1.0, dsigma=dsigma)
    calls.clear()
    assert [float(c) for c in path.coefficients(0.25)] == [0.25, 0.75, 1.0, -1.0]
    assert calls


@pytest.mark.parametrize("name", ["trigonometric", "linear_vp"])
@pytest.mark.parametrize("solver", catalogue.EVERY)
def test_every_solver(name, solver):
    """The same table as on the named path: steps, levels searched for, conversions, diffusions."""
    which, options = catalogue.EVERY[solver]
    grids = [paths.lambda_grid(name, 5)]
    if solver in catalogue.DETERMINISTIC or solver in catalogue.FROM_ZERO:
        grids.append(np.linspace(0.0, 1.0, 6))
    for grid in grids:
        ours, theirs = (
            pfc.plan(which, grid=grid, path=path, prediction="data", **options)
            for path in (PATHS[name], name)
        )
        # Stages in lambda are found by bisection of one function and of the other.
        torch.testing.assert_close(ours.table, theirs.table, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", paths.EVERY)
def test_conversions(name, prediction):
    grid = np.linspace(0.05, 0.95, 5)
    for solver in ("heun", "unipc", "ddim", "deis"):
        ours, theirs = (
            pfc.plan(solver, grid=grid, path=path, prediction=prediction) for path in (PATHS[name], name)
        )
        torch.testing.assert_close(ours.table, theirs.table, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "grid",
    [
        pfc.grids.lambda_uniform(-2.0, 3.0),
        pfc.grids.lambda_uniform(-2.0, 3.0, whole=False).shifted(2.0),
        pfc.grids.karras(levels="rho", sigma_min=0.01, sigma_max=20.0),
    ],
)
def test_grids_of_noise_levels(grid):
    for name in ("vp", "trigonometric"):
        np.testing.assert_allclose(
            grid.times_on(PATHS[name], 7), grid.times_on(pfc.paths.get(name), 7), rtol=1e-12
        )


def test_grids_refuse_levels_past_the_end():
    path = pfc.paths.custom(lambda t: t, lambda t: 1.1 - t)
    with pytest.raises(ValueError, match=r"hi is 3\.0.*ends at lambda = 2\.30"):
        pfc.grids.lambda_uniform(-1.0, 3.0).times_on(path, 4)
    with pytest.raises(ValueError, match=r"sigma_min is 0\.05.*lowest sigma / alpha is 0\.1"):
        pfc.grids.karras(levels="rho", sigma_min=0.05, sigma_max=20.0).times_on(path, 4)


def test_rounded_ends_are_the_ends():
    """cos(pi / 2) is 6e-17 in float64; the path ends on the data all the same."""
    assert [float(c) for c in PATHS["trigonometric"].coefficients(1.0)][:2] == [1.0, 0.0]
    plan = pfc.plan("dpmpp_2m", 4, path=PATHS["trigonometric"], prediction="data")
    assert plan.rows[-1].b == [] and plan.rows[-1].a == 0.0


def test_a_kink_is_no_wrong_derivative():
    path = pfc.paths.custom(lambda t: torch.minimum(t, 0.5 * t + 0.25), lambda t: 1 - t)
    assert float(path.coefficients(0.25)[2]) == 1.0 and float(path.coefficients(0.75)[2]) == 0.5


def test_plans_of_no_grad_code():
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            plan = pfc.plan("heun", 3, path=PATHS["trigonometric"], grid=np.linspace(0.1, 0.9, 4))
        named = pfc.plan("heun", 3, path="trigonometric", grid=np.linspace(0.1, 0.9, 4))
        torch.testing.assert_close(plan.table, named.table, rtol=1e-12, atol=1e-12)


def test_a_plan_survives_json():
    """The rows hold every coefficient; the path is known by its name and values."""
    path = PATHS["trigonometric"]
    plan = pfc.plan("unipc", 4, path=path, prediction="noise", grid=np.linspace(0.1, 0.9, 5))
    loaded = pfc.Plan.from_json(plan.to_json())
    assert loaded == plan
    assert torch.equal(loaded.table, plan.table)
    assert loaded.path == path and path == loaded.path
    assert loaded.path.name == "my trigonometric"
    net = as_net(fields.gaussian("trigonometric").of("noise"))
    x0 = torch.randn(3, 4, dtype=torch.float64)
    seen = []
    found = pfc.Sampler(loaded)(
        pfc.Field(net, "noise", path), x0=x0, callback=lambda *args: seen.append(args[-1].clone())
    )
    assert torch.equal(found, pfc.Sampler(plan)(pfc.Field(net, "noise", path), x0=x0))
    assert len(seen) == 4  # the predicted data, from the field's own path
    again = pfc.Plan.from_json(loaded.to_json())
    assert again == plan


def test_a_loaded_plan_is_never_run_on_another_path():
    plan = pfc.plan("euler", 3, path=PATHS["trigonometric"])
    loaded = pfc.Plan.from_json(plan.to_json())
    same_name = pfc.paths.custom(lambda t: t, lambda t: 1 - t, name="my trigonometric")
    same_values = pfc.paths.custom(*FUNCTIONS["trigonometric"], name="another")
    for path in (same_name, same_values, "trigonometric", "linear"):
        with pytest.raises(ValueError, match="path: the plan is for SavedPath"):
            pfc.Sampler(loaded)(pfc.Field(lambda x, t: x, path=path), x0=torch.zeros(1, 2))
    for call in (
        lambda: pfc.plan("euler", 3, path=loaded.path, prediction="noise"),
        lambda: loaded.path.coefficients(0.5),
        lambda: pfc.interpolate(torch.zeros(1, 2), torch.zeros(1), seeds=[0], path=loaded.path),
    ):
        with pytest.raises(
            ValueError, match=r"'my trigonometric' came from a plan's JSON.*pfc\.paths\.custom"
        ):
            call()


def test_start_from_noise_alone():
    path = pfc.paths.custom(lambda t: 1.0, lambda t: 20 * (1 - t), name="small ve")
    plan = pfc.plan("ddim", 2, path=path, prediction="data")
    field = pfc.Field(lambda x, t: 0 * x, "data", path)
    found = pfc.Sampler(plan)(field, shape=(5,), seeds=range(4), return_trajectory=True)
    assert torch.equal(found.states[0], 20.0 * pfc.randn(range(4), (5,)))


def _steps(t):
    return torch.floor(4 * t) / 4 + 1e-3 * t


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1.0, lambda t: 1 - t), ["alpha", "function", "float"]),
        ((lambda t: t, lambda t: 1 - t, 1.0), ["dalpha", "function", "float"]),
        ((lambda t: t, lambda t: 1 - t, None, None, 7), ["name", "string", "int"]),
        ((lambda t: t, lambda t: 1 - t, None, None, ""), ["name", "empty"]),
        ((lambda t: np.sin(t.numpy()), lambda t: 1 - t), ["alpha", "torch's functions"]),
        ((lambda t: t.float(), lambda t: 1 - t), ["alpha", "float64", "float32"]),
        ((lambda t: t[:2], lambda t: 1 - t), ["alpha", "elementwise", "[2]"]),
        ((lambda t: torch.log(t), lambda t: 1 - t), ["alpha", "-inf", "t = 0.0"]),
        ((lambda t: t - 0.25, lambda t: 1 - t), ["alpha", "negative", "-0.25"]),
        ((lambda t: t * (1 - t), lambda t: (1 - t) ** 3), ["alpha(1)", "positive"]),
        ((lambda t: t + 1, lambda t: t), ["sigma(0)", "positive"]),
        ((lambda t: 1 - 0.5 * t, lambda t: 1 + t), ["alpha / sigma", "rise strictly"]),
        ((lambda t: 1.0, lambda t: 2.0), ["alpha / sigma", "rise strictly"]),
        ((_steps, lambda t: 1 - t), ["alpha jumps from", "pfc.paths.table"]),
        ((lambda t: t.detach(), lambda t: 1 - t), ["alpha's derivative by autodiff is 0.0", "differences of alpha"]),
        ((lambda t: t, lambda t: 1 - t, None, lambda t: -2.0), ["dsigma is -2.0", "differences of sigma"]),
    ],
)  # fmt: skip
def test_refused(arguments, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        pfc.paths.custom(*arguments)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_conversions_that_divide_by_zero_are_refused():
    with pytest.raises(
        ValueError, match=r"'noise' does not determine the data.*t = 0 on the my trigonometric"
    ):
        pfc.plan("dpmpp_2m", 4, path=PATHS["trigonometric"], prediction="noise")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_training_pairs(prediction, dtype):
    """Against the kernels, on a path that both know; the noise of the seeds included."""
    data = pfc.randn(range(6), (3, 2)).to(dtype)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    ours, theirs = (
        pfc.interpolate(data, t, seeds=range(6), path=path, prediction=prediction, draw=2)
        for path in (PATHS["trigonometric"], "trigonometric")
    )
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    for mine, kernel in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, kernel, rtol=tolerance, atol=tolerance)


def test_training_pairs_have_gradients_and_refuse_times_outside():
    path = PATHS["trigonometric"]
    data = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    pair = pfc.interpolate(data, t, x0=x0, path=path)
    (pair.x_t.sum() + 2 * pair.target.sum()).backward()
    alpha, sigma, dalpha, dsigma = (torch.from_numpy(c)[:, None] for c in path.coefficients(t.numpy()))
    torch.testing.assert_close(data.grad, (alpha + 2 * dalpha).expand(4, 3))
    torch.testing.assert_close(x0.grad, (sigma + 2 * dsigma).expand(4, 3))
    outside = pfc.interpolate(torch.ones(2, 1), torch.tensor([0.5, 1.5]), seeds=[1, 2], path=path)
    assert outside.x_t.isfinite().tolist() == [[True], [False]]


def test_training_loss_on_a_custom_path():
    from pyflowcore.training import objectives

    objective = objectives.Objective(path=PATHS["trigonometric"], prediction="velocity", times="uniform")
    named = objectives.Objective(path="trigonometric", prediction="velocity", times="uniform")
    data, seeds = torch.randn(8, 3), torch.arange(8)
    ours, theirs = (
        objectives.regression_loss(lambda x, t: 0.5 * x, data, seeds, objective=one)
        for one in (objective, named)
    )
    torch.testing.assert_close(ours, theirs)


def slow(t):
    return t.sin()


def fast(t):
    return 1 - t


def test_a_loaded_plan_takes_the_path_from_the_field():
    """It prints and plots without lambda; what needs the path's values asks the field's."""
    path = pfc.paths.custom(slow, fast)
    field = pfc.Field(lambda x, t: torch.tanh(x), "data", path)
    x, mask, seeds = torch.linspace(-1, 1, 6).reshape(2, 3), torch.tensor([[1.0, 0.0, 0.5]]), [1, 2]
    for grid in (None, pfc.grids.uniform().partial(0.5)):
        plan = pfc.plan("dpmpp_2m", 3, path=path, prediction="data", grid=grid)
        loaded = pfc.Plan.from_json(plan.to_json())
        assert "lambda" in str(plan) and "lambda" not in str(loaded)
        start = {"x0": x} if grid is None else {"init": x}
        for options in ({}, {"mask": mask, "known": x}, {"callback": lambda *seen: None}):
            wanted = pfc.Sampler(plan)(field, seeds=seeds, **start, **options)
            assert torch.equal(pfc.Sampler(loaded)(field, seeds=seeds, **start, **options), wanted)
    assert loaded.path != pfc.paths.custom(slow, lambda t: 1 - t * t) and isinstance(
        loaded.path, pfc.paths.SavedPath
    )


def test_copies_and_pickles_keep_the_functions():
    plan = pfc.plan("heun", 3, path=pfc.paths.custom(slow, fast))
    assert copy.deepcopy(plan) is plan and copy.copy(plan) is plan
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan and isinstance(again.path, pfc.paths.Custom) and str(again) == str(plan)
    # A lambda does not pickle: the plan does, and knows the path by its values.
    local = pfc.plan("heun", 3, path=pfc.paths.custom(lambda t: t.sin(), fast))
    again = pickle.loads(pickle.dumps(local))
    assert again == local and isinstance(again.path, pfc.paths.SavedPath)


def test_a_learned_plan_keeps_the_functions():
    path = pfc.paths.custom(slow, fast)
    plan = pfc.plan("ab2", 3, path=path)
    learned = to_plan(unroll(plan), plan)
    assert learned.path is path and "lambda" in str(learned)
