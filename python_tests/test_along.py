"""Change of path: a field trained on one path, integrated along another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue, executor, fields, paths
from reference.torch_fields import as_net

INFINITE_ENDS = ("linear", "trigonometric", "polynomial", "linear_vp")
X0 = np.linspace(-1.2, 1.2, 9)


def mixture(path):
    return fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])


def solve(plan, field, x0=X0, draw=lambda n: 0.0):
    return executor.run(plan.to_dict(), field, x0, draw)[-1]


@pytest.mark.parametrize("along", paths.EVERY)
@pytest.mark.parametrize("trained", paths.EVERY)
@pytest.mark.parametrize("prediction", fields.PREDICTIONS)
def test_the_field_of_one_path_gives_the_solve_of_another(trained, along, prediction):
    """What the plan makes of the exact field of `trained` is what the exact field of `along` gives, at every step."""
    grid = paths.lambda_grid(along, 6)
    for solver in ("heun", "unipc", "deis"):
        changed = pfc.plan(solver, grid=grid, path=trained, prediction=prediction, along=along)
        direct = pfc.plan(solver, grid=grid, path=along, prediction="velocity")
        found = executor.run(changed.to_dict(), mixture(trained).of(prediction), X0)
        wanted = executor.run(direct.to_dict(), mixture(along).of("velocity"), X0)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", catalogue.EVERY)
def test_every_solver(solver):
    """Stochastic ones on the same noise."""
    which, options = catalogue.EVERY[solver]
    grid, draw = paths.lambda_grid("linear", 5), executor.plan_noise([3], (9,))
    changed = pfc.plan(which, grid=grid, path="vp", prediction="noise", along="linear", **options)
    direct = pfc.plan(which, grid=grid, path="linear", prediction="data", **options)
    found = solve(changed, mixture("vp").of("noise"), X0[None], draw)
    wanted = solve(direct, mixture("linear").of("data"), X0[None], draw)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trained", ["trigonometric", "vp", "ve"])
@pytest.mark.parametrize("along", ["linear", "linear_vp"])
def test_gaussian_data_in_closed_form(trained, along):
    """The flow map of the path that is integrated, whatever the field was trained on."""
    grid = paths.lambda_grid(along, 40)
    plan = pfc.plan("dopri8", grid=grid, path=trained, prediction="velocity", along=along)
    found = solve(plan, fields.gaussian(trained).of("velocity"))
    np.testing.assert_allclose(
        found, fields.gaussian_flow(along, X0, grid[0], grid[-1]), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("solver", "order"), [("heun", 2), ("rk4", 4), ("unipc", 3), ("dpmpp_2m", 2), ("deis", 3)]
)
def test_orders_are_kept(solver, order):
    options = {} if solver in ("heun", "rk4") else {"start": "single"}
    exact = mixture("linear").flow(X0, *paths.lambda_grid("linear", 4)[[0, -1]])
    errors = []
    for steps in (80, 160):
        plan = pfc.plan(
            solver,
            grid=paths.lambda_grid("linear", steps),
            path="vp",
            prediction="noise",
            along="linear",
            **options,
        )
        errors.append(np.abs(solve(plan, mixture("vp").of("noise")) - exact).max())
    assert np.log2(errors[0] / errors[1]) > order - 0.3


@pytest.mark.parametrize("trained", INFINITE_ENDS)
@pytest.mark.parametrize("along", INFINITE_ENDS)
def test_infinite_ends_are_exact(trained, along):
    """lambda = -inf and inf meet at t = 0 and 1, with scale 1, and nothing is divided there."""
    old, new = pfc.paths.get(trained), pfc.paths.get(along)
    assert pfc._core.ask(old._core, pfc._core.Prediction.data, new._core, 0.0) == (0.0, 1.0)
    assert pfc._core.ask(old._core, pfc._core.Prediction.data, new._core, 1.0) == (1.0, 1.0)
    plan = pfc.plan("dpmpp_2m", 4, path=trained, prediction="data", along=along)
    assert (plan.facts[0].field_t, plan.facts[0].t) == (0.0, 0.0)
    found = solve(plan, lambda x, t: np.full_like(x, 0.7))
    np.testing.assert_array_equal(found, 0.7)  # point data: exact for any number of steps


@pytest.mark.parametrize("trained", paths.EVERY)
@pytest.mark.parametrize("along", paths.EVERY)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_3m", "unipc", "deis", "res", "edm_heun"])
def test_point_data_from_end_to_end(trained, along, solver):
    """The whole way from noise to data, over the ends where lambda is infinite, and from paths that do not reach them."""
    point = fields.Mixture(trained, [0.7], [0.0])
    for prediction in ("data", "noise", "v") if trained in ("vp", "ve") else ("data", "v"):
        plan = pfc.plan(solver, 6, path=trained, prediction=prediction, along=along)
        np.testing.assert_allclose(solve(plan, point.of(prediction)), 0.7, atol=1e-12)


def test_the_scale_is_finite_and_that_of_the_paths():
    for trained, along in (
        ("vp", "linear"),
        ("ve", "linear"),
        ("linear", "ve"),
        ("polynomial", "trigonometric"),
    ):
        old, new = pfc.paths.get(trained), pfc.paths.get(along)
        for r in np.linspace(0.02, 0.98, 13):
            t, scale = pfc._core.ask(old._core, pfc._core.Prediction.noise, new._core, r)
            a, s, _, _ = old.coefficients(t)
            b, z, _, _ = new.coefficients(r)
            if 0 < t < 1:
                assert a / s == pytest.approx(b / z, rel=1e-11)
                assert scale == pytest.approx(a / b, rel=1e-11) and scale == pytest.approx(s / z, rel=1e-11)
        for r in (0.0, 1.0):
            assert np.isfinite(pfc._core.ask(old._core, pfc._core.Prediction.noise, new._core, r)).all()


def test_levels_that_the_field_does_not_know_are_its_nearest_end():
    """VP begins at lambda = -5.03, the linear path at minus infinity: pure noise is shown as VP's noisiest level."""
    plan = pfc.plan("euler", grid=[0.0, 0.001, 0.5], path="vp", prediction="noise", along="linear")
    assert plan.row_times.tolist() == [0.0, 0.0]
    alpha, sigma, _, _ = pfc.paths.VP().coefficients(0.0)
    # u = x1 - x with x1 = (x - sigma eps) / alpha, as VP's own samplers begin.
    row = plan.rows[0]
    assert row.p == pytest.approx(1 / alpha - 1, rel=1e-12)
    assert row.q == pytest.approx(-sigma / alpha, rel=1e-12)
    table = pfc.paths.table([0, 0.3, 0.6, 1], [0.2, 0.5, 0.8, 1.0], [1.0, 0.7, 0.4, 0.1])
    plan = pfc.plan("euler", grid=[0.5, 0.99, 1.0], path=table, prediction="noise", along="linear")
    assert plan.row_times[-1] == 1.0


@pytest.mark.parametrize("trained", ["vp", "trigonometric", "linear_vp", "ve", "polynomial"])
def test_ddim_is_euler_on_the_linear_path(trained):
    """At matched lambda, to 1e-12 in float64 [MATHS]: DDIM on the field's own path, and Euler in t along the linear path."""
    grid = paths.lambda_grid(trained, 10, 0.05, 0.98)
    own = pfc.plan("ddim", grid=grid, path=trained, prediction="noise")
    alpha, sigma, _, _ = paths.coefficients(trained, grid)
    along = pfc.plan("euler", grid=alpha / (alpha + sigma), path=trained, prediction="noise", along="linear")
    field = mixture(trained).of("noise")
    start, end = (alpha + sigma)[[0, -1]]  # x on the linear path is x / (alpha + sigma) at equal lambda
    found = solve(along, field, X0 / start) * end
    np.testing.assert_allclose(found, solve(own, field), rtol=1e-12, atol=1e-12)


def test_a_discrete_schedule_along_the_linear_path():
    """DDIM on integer timesteps is Euler on the linear path there: the field is told the same timesteps."""
    schedule = pfc.paths.from_alphas_cumprod(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    grid = np.asarray(schedule.times_of([901, 601, 301, 1]))
    alpha, sigma, _, _ = schedule.coefficients(grid)
    told = []

    def net(x, k):
        told.append(k.tolist())
        return torch.tanh(x) * 0.5 + 0.0003 * k[:, None].double()

    x = torch.from_numpy(X0)[None]
    own = pfc.Sampler(pfc.plan("ddim", grid=grid, path=schedule, prediction="noise"))(
        pfc.Field(net, "noise", schedule, round_time=True), x0=x
    )
    plan = pfc.plan("euler", grid=alpha / (alpha + sigma), path=schedule, prediction="noise", along="linear")
    found = pfc.Sampler(plan)(pfc.Field(net, "noise", schedule, round_time=True), x0=x / (alpha + sigma)[0])
    torch.testing.assert_close(found * (alpha + sigma)[-1], own, rtol=1e-12, atol=1e-12)
    assert told[:3] == told[3:] == [[901.0], [601.0], [301.0]]


def test_grids_are_on_the_path_that_is_integrated():
    grid = pfc.grids.lambda_uniform(-2.0, 2.0, whole=False)
    plan = pfc.plan("euler", 5, grid=grid, path="vp", prediction="noise", along="linear")
    alpha, sigma, _, _ = paths.linear(plan.times)
    np.testing.assert_allclose(np.diff(np.log(alpha / sigma)), 0.8, rtol=1e-12)
    old, s, _, _ = paths.vp(np.array([row.field_t for row in plan.facts if row.evaluates]))
    np.testing.assert_allclose(np.log(old / s), np.linspace(-2, 2, 6)[:-1], atol=1e-12)


def test_through_the_sampler():
    """The network gets its own times and its own path's points, the callback the predicted data, x0 the new path's noise."""
    plan = pfc.plan("heun", 6, path="ve", prediction=pfc.EDM(0.5), along="linear")
    exact = fields.gaussian("ve")
    seen = []

    def net(x, c_noise):
        """The network F of the Gaussian's exact denoiser."""
        sigma = float(torch.exp(4 * c_noise[0].double()))
        seen.append((float(x.std()), sigma))
        total = np.hypot(sigma, 0.5)
        point = x.double().numpy() * total
        data = exact.means(point, 1 - sigma / 80.0)[0]
        return torch.from_numpy((data - 0.25 / total**2 * point) * total / (sigma * 0.5)).to(x.dtype)

    field, shown = pfc.Field(net, pfc.EDM(0.5), "ve"), []
    noise = pfc.randn(range(500), (4,), dtype=torch.float64)
    found = pfc.Sampler(plan)(
        field, shape=(4,), seeds=range(500), dtype=torch.float64,
        callback=lambda step, nfe, t, x, data: shown.append((t, x.clone(), data.clone())),
    )  # fmt: skip
    assert torch.equal(found, pfc.Sampler(plan)(field, x0=noise))
    assert [t for t, _, _ in shown] == list(plan.times[1:])
    # c_in x has a standard deviation of about 1 at every level; the highest level is the path's own.
    assert all(0.5 < std < 1.3 for std, _ in seen) and seen[0][1] == pytest.approx(80.0)
    direct = pfc.plan("heun", 6, path="linear", prediction="velocity")
    wanted = pfc.Sampler(direct)(as_net(fields.gaussian("linear").of("velocity")), x0=noise)
    # The first step sees sigma = 80 in place of infinity, which is all that differs.
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
    _, _, last = shown[-1]
    torch.testing.assert_close(
        last, found, rtol=1e-9, atol=1e-9
    )  # the last step, to t = 1, is the predicted data


def test_denoised_on_the_way():
    """The predicted data of every step is that of the exact field at the step's last evaluation."""
    plan = pfc.plan("ddim", grid=[0.2, 0.5, 0.8], path="vp", prediction="noise", along="linear")
    x0, shown = torch.from_numpy(X0)[None], []
    states = pfc.Sampler(plan)(
        pfc.Field(as_net(mixture("vp").of("noise")), "noise", "vp"), x0=x0, return_trajectory=True,
        callback=lambda *args: shown.append(args[-1].clone()),
    ).states  # fmt: skip
    for i, t in enumerate((0.2, 0.5)):
        np.testing.assert_allclose(
            shown[i].numpy(), mixture("linear").means(states[i].numpy(), t)[0], rtol=1e-9, atol=1e-9
        )


def test_json_printing_and_equality():
    plan = pfc.plan("heun", 3, path="vp", prediction="noise", along="linear")
    loaded = pfc.Plan.from_json(plan.to_json())
    assert loaded == plan and torch.equal(loaded.row_times, plan.row_times)
    assert loaded.along == pfc.paths.Linear() and loaded.path == pfc.paths.VP()
    assert "integrated along the linear path" in str(plan) and "field's t" in str(plan)
    assert "along='linear'" in repr(plan)
    plain = pfc.plan("heun", 3, path="vp", prediction="noise")
    assert pfc.plan("heun", 3, path="vp", prediction="noise", along="vp") == plain
    assert "along" not in plain.to_dict() and plain.along == plain.path
    with pytest.raises(ValueError, match=r"field_t is 1\.5"):
        broken = plan.to_dict()
        broken["rows"][1]["field_t"] = 1.5
        pfc.Plan.from_dict(broken)


def test_refused():
    with pytest.raises(ValueError, match="along: unknown name 'vp2'"):
        pfc.plan("euler", 3, along="vp2")
    with pytest.raises(ValueError, match=r"the plan is for VP.*field was trained on Linear.*along="):
        pfc.Sampler(pfc.plan("euler", 3, path="vp", along="linear"))(lambda x, t: x, x0=torch.zeros(1, 1))
    # Polynomial velocities determine nothing at t = 0, along whichever path they are asked.
    with pytest.raises(
        ValueError, match=r"'velocity' does not determine the velocity.*t = 0 on the linear path"
    ):
        pfc.plan("euler", 3, path="polynomial", along="linear")


def test_along_a_custom_path():
    """As along the named one that it is."""
    mine = pfc.paths.custom(lambda t: t, lambda t: 1 - t, name="mine")
    for trained, along in (("vp", mine), (mine, "trigonometric")):
        names = ["linear" if p is mine else p for p in (trained, along)]
        ours = pfc.plan("unipc", 5, path=trained, prediction="data", along=along)
        theirs = pfc.plan("unipc", 5, path=names[0], prediction="data", along=names[1])
        torch.testing.assert_close(ours.table, theirs.table, rtol=1e-11, atol=1e-11)
        assert pfc.Plan.from_json(ours.to_json()) == ours


@pytest.mark.parametrize(
    "solver", [name for name in catalogue.DETERMINISTIC if name not in ("dopri8", "tsit5")]
)
def test_backwards(solver):
    """Inversion along another path: decreasing times change nothing of how a field is asked."""
    which, options, _ = catalogue.DETERMINISTIC[solver]
    grid = paths.lambda_grid("linear", 5)[::-1]
    changed = pfc.plan(which, grid=grid, path="vp", prediction="noise", along="linear", **options)
    direct = pfc.plan(which, grid=grid, path="linear", prediction="velocity", **options)
    found, wanted = solve(changed, mixture("vp").of("noise")), solve(direct, mixture("linear").of("velocity"))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_backwards_from_the_data_along_another_path():
    """From end to end: what the exact field of the other path gives."""
    plan = pfc.plan("heun", grid=np.linspace(1.0, 0.0, 81), path="trigonometric", along="linear", last="full")
    direct = pfc.plan("heun", grid=np.linspace(1.0, 0.0, 81), path="linear", last="full")
    found = solve(plan, fields.gaussian("trigonometric").of("velocity"))
    np.testing.assert_allclose(
        found, solve(direct, fields.gaussian("linear").of("velocity")), rtol=1e-9, atol=1e-9
    )
