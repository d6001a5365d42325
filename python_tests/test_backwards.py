"""Decreasing times: from data to noise (inversion). The order of every family measured backwards, the exact flow map and the
exact discrete maps in both directions, what the ends demand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, executor, fields, orders, solvers, unipc
from reference import paths as reference
from reference.torch_fields import as_net

WRONG = (ValueError, TypeError)
X0 = np.linspace(-2.0, 2.0, 9)
UNEVEN = np.array([1.0, 0.8, 0.61, 0.33, 0.2, 0.07, 0.0])
ONE_A_FAMILY = ("rk4", "ab3", "ddim", "dpmpp_3m", "unipc-2-bh2", "deis-3-logrho", "res-3", "edm_heun")
DISTINCT = [name for name in catalogue.DETERMINISTIC if "bh1" not in name]
# On the linear path everything, on the others one solver of a family.
MEASURED = [("linear", name) for name in DISTINCT]
MEASURED += [(path, name) for path in reference.EVERY if path != "linear" for name in ONE_A_FAMILY]


@pytest.mark.parametrize(("path", "name"), MEASURED)
def test_order(path, name):
    """As test_orders.py measures it forwards, with the same limits; the end is known: where the forward flow began."""
    solver, options, order = catalogue.DETERMINISTIC[name]
    errors, slope = orders.measure(path, solver, options, orders.counts_of(name), backwards=True)
    assert 1e-11 < errors[1] < (5e-4 if order > 1 else 7e-3) * (80 if path == "ve" else 1), errors
    assert slope >= order - 0.3, (slope, errors)


def whole_grid(path, steps):
    """From 0 to 1; the exploding path needs levels that fall geometrically."""
    return pfc.grids.karras(sigma_max=80.0, levels="rho") if path == "ve" else pfc.grids.uniform()


def whole_errors(path, name, backwards, counts):
    """Largest errors of the flow map of Gaussian data between t = 0 and t = 1, in units of the end's deviation."""
    solver, options, _ = catalogue.DETERMINISTIC[name]
    # A polynomial path's velocity determines nothing else at t = 0, where only a step forwards needs more of it.
    kind = "data" if path == "polynomial" and not backwards else "velocity"
    field = fields.gaussian_everywhere(path, kind)
    noise = X0 * pfc.paths.get(path).noise_scale
    ends = noise, fields.gaussian_flow(path, noise, 0.0, 1.0)
    start, wanted = ends[::-1] if backwards else ends
    errors = []
    for steps in counts:
        grid = whole_grid(path, steps)
        grid = grid.reversed() if backwards else grid
        plan = pfc.plan(solver, steps, grid=grid, path=path, prediction=kind, **options)
        found = executor.run(plan.to_dict(), field, start)[-1]
        errors.append(np.abs(found - wanted).max() / wanted.std())
    return errors


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("backwards", [False, True])
def test_flow_map_from_end_to_end(path, backwards):
    """Closed form 1 over the whole of [0, 1], both ends included: every solver converges to it."""
    for name in DISTINCT:
        errors = whole_errors(path, name, backwards, (40, 80))
        assert errors[1] < 0.12, (name, errors)
        assert errors[1] < 0.8 * errors[0] or errors[1] < 5e-3, (name, errors)


@pytest.mark.parametrize("path", [path for path in reference.EVERY if path != "ve"])
@pytest.mark.parametrize("name", ["midpoint", "heun3", "rk4", "dopri5", "ab2"])
def test_steps_in_t_keep_their_order_backwards_from_end_to_end(path, name):
    """No first-order step at either end: a stage at t = 1 is the first step's first and cannot be avoided, t = 0 is regular."""
    order = catalogue.DETERMINISTIC[name][2]
    # There the error changes its sign at about 100 steps, so that the slope settles late.
    counts = (256, 512) if (path, name) == ("polynomial", "rk4") else (64, 128)
    errors = whole_errors(path, name, True, counts)
    assert np.log2(errors[0] / errors[1]) >= order - 0.3, errors


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "ab2"])
def test_discrete_map(path, solver):
    """What the textbook's loop gives on falling times, to rounding, stages at both ends included."""
    field = fields.gaussian_everywhere(path, "velocity")
    plan = pfc.plan(solver, grid=UNEVEN, path=path)
    found = executor.run(plan.to_dict(), field, X0)[-1]
    wanted = solvers.BY_NAME[solver](field, X0, list(UNEVEN))
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "v"])
def test_discrete_map_of_ddim(path, prediction):
    """alpha' D + sigma' noise at every step, from t = 1, where D is x, to t = 0; dpmpp_1s and deis of order 1 are this map."""
    exact = fields.gaussian_everywhere(path, prediction)
    data, noise = (fields.gaussian_everywhere(path, kind) for kind in ("data", "noise"))
    times = list(UNEVEN)
    if prediction == "velocity" and path in ("vp", "linear_vp"):
        times = times[1:]  # this velocity does not determine the noise at t = 1
    wanted = solvers.ddim(lambda x, t: (data(x, t), noise(x, t)), X0, times, path)
    for solver, options in (("ddim", {}), ("dpmpp_1s", {}), ("deis", {"order": 1})):
        plan = pfc.plan(solver, grid=times, path=path, prediction=prediction, **options)
        found = executor.run(plan.to_dict(), exact, X0)[-1]
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", ["vp", "linear_vp"])
def test_a_velocity_that_does_not_determine_the_noise_takes_euler_first(path):
    """sigma' is infinite at t = 1: the first step of a solver in lambda is Euler's in t."""
    field = fields.gaussian_everywhere(path, "velocity")
    for name in ("ddim", "dpmpp_3m", "unipc-3-bh2", "deis-3-rho", "deis-2-logrho", "res-3", "edm_heun"):
        solver, options, _ = catalogue.DETERMINISTIC[name]
        options = options | ({"start": "ramp"} if "start" in options else {})
        plan = pfc.plan(solver, grid=UNEVEN, path=path, **options)
        found = executor.run(plan.to_dict(), field, X0)[0]
        np.testing.assert_allclose(found, X0 - 0.2 * field(X0, 1.0), rtol=1e-14)


@pytest.mark.parametrize("path", reference.EVERY)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_papers_loop(path, variant, order):
    mixture = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])
    grid = np.array([0.9, 0.8, 0.35, 0.3, 0.2, 0.1])
    plan = pfc.plan("unipc", grid=grid, path=path, order=order, variant=variant)
    wanted = unipc.solve(mixture.means, path, X0, list(grid), order, variant)
    found = executor.run(plan.to_dict(), mixture.of("velocity"), X0)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


EXACT_ANYWHERE = [
    name
    for name in catalogue.DETERMINISTIC
    if name.startswith(("d", "unipc", "res", "edm")) and "dop" not in name
]
EXACT = [(path, name) for path in reference.EVERY for name in EXACT_ANYWHERE]
EXACT += [("linear", name) for name in catalogue.DETERMINISTIC if name not in EXACT_ANYWHERE]


@pytest.mark.parametrize(("path", "name"), EXACT)
def test_point_data(path, name):
    """The predicted data is the point and the predicted noise the state's own at every time, so x - alpha m grows exactly as
    sigma does, whatever the steps; on the linear path the velocity is constant too. From inside (0, 1): at t = 1 there is but
    one state."""
    solver, options, _ = catalogue.DETERMINISTIC[name]
    options = options | ({"start": "ramp"} if "start" in options else {})
    field = fields.Mixture(path, [0.7], [0.0]).of("velocity")
    for times in ([0.9, 0.0], [0.95, 0.5, 0.1], [0.9, 0.8, 0.35, 0.3, 0.1, 0.0]):
        (a0, s0, _, _), (a1, s1, _, _) = (reference.coefficients(path, t) for t in (times[0], times[-1]))
        plan = pfc.plan(solver, grid=times, path=path, **options)
        start = a0 * 0.7 + s0 * X0
        found = executor.run(plan.to_dict(), field, start)[-1]
        np.testing.assert_allclose(found, a1 * 0.7 + s1 * X0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["rk4", "dopri5", "unipc-2-bh2", "unipc-3-bh1", "dpmpp_2m", "heun", "euler"])
def test_there_and_back(name):
    """Forwards and then backwards, through the Sampler, on Gaussian data: back to the start at the solver's order."""
    solver, options, order = catalogue.DETERMINISTIC[name]
    net = as_net(fields.gaussian("linear").of("velocity"))
    x0, errors = torch.from_numpy(X0)[None], []
    for steps in (40, 80):
        times = reference.lambda_grid("linear", steps)
        there, back = (pfc.plan(solver, grid=grid, **options) for grid in (times, times[::-1]))
        data = pfc.Sampler(there)(net, x0=x0)
        np.testing.assert_allclose(
            data[0],
            fields.gaussian_flow("linear", X0, times[0], times[-1]),
            atol=3e-2 if order == 1 else 3e-3,
        )
        errors.append((pfc.Sampler(back)(net, x0=data) - x0).abs().max().item())
    assert errors[1] < (0.3 if order == 1 else 1e-2)
    assert np.log2(errors[0] / errors[1]) >= order - 0.3, errors


def test_there_and_back_between_the_ends():
    """t = 0 to t = 1 and back, no step of lower order: errors of order 4, from inversion to reconstruction."""
    net = as_net(fields.gaussian_everywhere("trigonometric", "velocity"))
    x0, errors = torch.from_numpy(X0)[None], []
    for steps in (16, 32):
        there = pfc.plan("rk4", steps, path="trigonometric", last="full")
        back = pfc.plan("rk4", steps, path="trigonometric", grid=pfc.grids.uniform().reversed())
        field = pfc.Field(net, path="trigonometric")
        errors.append((pfc.Sampler(back)(field, x0=pfc.Sampler(there)(field, x0=x0)) - x0).abs().max().item())
    assert errors[1] < 1e-5
    assert np.log2(errors[0] / errors[1]) >= 3.7, errors


# ---------------------------------------------------------------------------------------------- grids, samplers, refusals
def test_reversed_grids():
    grid = pfc.grids.karras(levels="rho").shifted(2.0)
    for path in reference.EVERY:
        forwards = pfc.plan("ddim", 7, grid=grid, path=path, prediction="v").times
        assert pfc.plan("ddim", 7, grid=grid.reversed(), path=path, prediction="v").times == forwards[::-1]
    assert grid.reversed().reversed().times(5) == grid.times(5)
    assert pfc.grids.uniform().reversed().shifted(3.0).times(4) == pfc.grids.shifted(3.0).times(4)[::-1]
    # steps follow from arrays, nfe from rules.
    assert pfc.plan("heun", grid=np.float32([1.0, 0.5, 0.25, 0.0])).steps == 3
    assert pfc.grids.times([0.0, 0.3, 1.0]).reversed().fixed_steps == 2
    assert pfc.plan("rk4", grid=pfc.grids.times([0.0, 0.3, 1.0]).reversed()).times == (1.0, 0.3, 0.0)
    assert pfc.plan("rk4", nfe=12, grid=pfc.grids.uniform().reversed()).nfe == 12
    assert repr(pfc.grids.uniform().reversed()) == "Reversed(base=Uniform())"


@pytest.mark.parametrize("name", ["heun", "unipc-3-bh2", "deis-3-rho"])
def test_callbacks_and_trajectories_report_falling_times(name):
    solver, options = catalogue.EVERY[name]
    plan = pfc.plan(solver, grid=UNEVEN, **options)
    field = as_net(fields.gaussian_everywhere("linear", "velocity"))
    seen = []

    def callback(step, nfe, t, x, denoised):
        seen.append((step, nfe, t, x.clone(), denoised))

    x0 = torch.from_numpy(X0)[None]
    found = pfc.Sampler(plan)(field, x0=x0, return_trajectory=True, callback=callback)
    assert found.times.tolist() == UNEVEN.tolist()
    assert torch.equal(found.states[0], x0)
    assert [entry[0] for entry in seen] == list(range(6))
    assert [entry[2] for entry in seen] == UNEVEN[1:].tolist()
    assert seen[-1][1] == plan.nfe
    assert torch.equal(torch.stack([entry[3] for entry in seen]), found.states[1:])
    # At t = 1 the state is the data, and a velocity knows it.
    if name != "heun" and "start" not in options:
        assert torch.equal(seen[0][4], x0)
    for step in (run := pfc.Sampler(plan).start(x0=x0)):
        assert step.t == plan.rows[step.row].t
        run.step(field(step.x, step.time))
    assert torch.equal(run.x, found.states[-1])
    assert pfc.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", sorted({case[0] for case in catalogue.STOCHASTIC.values()}))
def test_solvers_that_draw_noise_refuse(name):
    options = {"s_churn": 3.0} if name == "edm_heun" else {}
    with pytest.raises(ValueError, match=rf"'{name}'.* draws noise.*decrease \(from 1.*to 0.*deterministic"):
        pfc.plan(name, 4, grid=pfc.grids.uniform().reversed(), **options)


BACK = pfc.plan("ddim", grid=[1.0, 0.5, 0.0])
REFUSED = {
    "shape": (lambda: pfc.Sampler(BACK)(lambda x, t: x, shape=(3,), seeds=[1]), ["x0", "backwards", "t = 1.0", "shape"]),
    "neither": (lambda: pfc.Sampler(BACK)(lambda x, t: x, seeds=[1]), ["x0", "shape", "neither"]),
    "start": (lambda: pfc.Sampler(BACK).start(shape=(3,), seeds=[1]), ["x0", "backwards"]),
    "turns": (lambda: pfc.plan("ddim", grid=[1.0, 0.5, 0.6]), ["decrease", "times[1] = 0.5", "times[2] = 0.6"]),
    "turns later": (lambda: pfc.plan("ddim", grid=[0.1, 0.5, 0.6, 0.2]), ["increase", "times[2] = 0.6", "times[3] = 0.2"]),
    "stands": (lambda: pfc.plan("ddim", grid=[1.0, 0.5, 0.5]), ["strictly", "times[2] = 0.5"]),
    "nan": (lambda: pfc.plan("ddim", grid=[1.0, float("nan"), 0.0]), ["times[1]", "nan"]),
    "data at t = 1": (
        lambda: pfc.plan("dpmpp_2m", grid=[1.0, 0.5, 0.0], prediction="data"),
        ["'data'", "noise", "'dpmpp_2m'", "t = 1", "linear"],
    ),
    "noise at t = 0": (lambda: pfc.plan("rk4", grid=[0.5, 0.0], prediction="noise"), ["'noise'", "velocity", "'rk4'", "t = 0"]),
    "terminal": (lambda: pfc.grids.uniform().reversed().terminal(0.1).times(4), ["terminal", "t = 1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, words = REFUSED[case]
    with pytest.raises(WRONG) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("backwards", [False, True])
def test_denoised_is_none_for_steps_without_an_evaluation(backwards):
    grid = pfc.grids.uniform()
    plan = pfc.plan("euler", 5, grid=grid.reversed() if backwards else grid)
    seen = []
    pfc.Sampler(plan, pfc.CFGZero(2.0, zero_until=0.3))(
        lambda x, t, y: x * y[:, None], x0=torch.ones(2, 3), cond={"y": torch.ones(2)}, uncond={"y": torch.zeros(2)},
        callback=lambda step, nfe, t, x, denoised: seen.append(denoised is None),
    )  # fmt: skip
    # An evaluation is made at the time where its step begins.
    assert seen == [t < 0.3 for t in plan.times[:-1]] and any(seen) and not all(seen)
