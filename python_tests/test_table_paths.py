"""Paths given by tables, and discrete diffusion schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import executor, fields, paths

FINE = np.linspace(0.0, 1.0, 3001)


def of(name, count):
    """A named path's values as a table."""
    t = np.linspace(0.0, 1.0, count)
    alpha, sigma, _, _ = paths.coefficients(name, t)
    return pfc.paths.table(t, alpha, sigma)


def ddpm(count=1000):
    """Ho et al. 2020: beta from 1e-4 to 0.02."""
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, count))


@pytest.mark.parametrize("name", paths.EVERY)
def test_knots_are_exact(name):
    t = np.linspace(0.0, 1.0, 23)
    alpha, sigma, _, _ = paths.coefficients(name, t)
    ours = of(name, 23).coefficients(t)
    np.testing.assert_array_equal(ours[0], alpha)
    np.testing.assert_array_equal(ours[1], np.where(sigma < 1e-14, 0.0, sigma))


@pytest.mark.parametrize("name", paths.EVERY)
def test_smooth_and_monotone(name):
    """lambda rises everywhere, the derivatives are those of the values, and they are continuous at the knots."""
    path = of(name, 11)
    alpha, sigma, _, _ = path.coefficients(FINE)
    assert (np.diff(np.arctan2(alpha, sigma)) > 0).all()
    t, h = np.linspace(0.003, 0.997, 401), 1e-6
    below, above, here = path.coefficients(t - h), path.coefficients(t + h), path.coefficients(t)
    for value in (0, 1):
        difference = (above[value] - below[value]) / (2 * h)
        np.testing.assert_allclose(
            here[value + 2], difference, rtol=2e-5, atol=2e-5 * np.abs(difference).max()
        )
    knots = np.linspace(0.0, 1.0, 11)[1:-1]
    left, right = path.coefficients(knots - 1e-12), path.coefficients(knots + 1e-12)
    for value in range(4):
        np.testing.assert_allclose(left[value], right[value], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "trigonometric", "vp", "polynomial"])
def test_a_finer_table_is_nearer(name):
    """Errors fall at least as the square of the distance of the knots, away from infinite derivatives."""
    t = np.linspace(0.1, 0.9, 1501)
    exact = paths.coefficients(name, t)
    errors = [
        max(np.abs(of(name, n).coefficients(t)[v] - exact[v]).max() for v in (0, 1)) for n in (21, 41, 81)
    ]
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5
    assert errors[2] < 1e-4


def test_derivatives_stay_finite_at_ends_where_lambda_is_not():
    """So a velocity field can be asked at t = 1, and inversion can begin there."""
    for name in ("linear", "vp", "linear_vp"):
        for c in of(name, 50).coefficients([0.0, 1.0]):
            assert np.isfinite(c).all()


@pytest.mark.parametrize("solver", ["heun", "rk4", "dpmpp_2m", "unipc", "deis", "res", "edm_heun"])
def test_solvers_keep_their_closed_form(solver):
    """Point data: lambda-solvers are exact on any path, t-solvers near it on one this fine."""
    path, m = of("trigonometric", 400), 0.7
    plan = pfc.plan(solver, 12, path=path, prediction="data")
    x0 = np.linspace(-2, 2, 5)
    found = executor.run(plan.to_dict(), lambda x, t: np.full_like(x, m), x0)[-1]
    np.testing.assert_allclose(found, m, atol=1e-12 if solver not in ("heun", "rk4") else 0.02)


def test_json_holds_all_of_it():
    for path in (of("vp", 7), of("linear", 30), pfc.paths.from_alphas_cumprod(ddpm(50))):
        plan = pfc.plan("unipc", 4, path=path, prediction="data")
        loaded = pfc.Plan.from_json(plan.to_json())
        assert loaded == plan and loaded.path == path
        for ours, theirs in zip(loaded.path.coefficients(FINE), path.coefficients(FINE), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert pfc.plan("unipc", 4, path=loaded.path, prediction="data") == plan
        assert pfc.paths.get(path.to_dict()) == path
    assert of("vp", 7) != of("vp", 8)
    assert hash(of("vp", 7)) == hash(of("vp", 7))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pfc.paths.table([0, 1], [0, 1], [1, 0]), ["t", "4 values", "2"]),
        (lambda: pfc.paths.table([[0, 1]], [0, 1], [1, 0]), ["t", "one-dimensional"]),
        (lambda: pfc.paths.table([0, 0.5, 0.7, 0.9], [0, 0.5, 1, 2], [1, 0.5, 0.2, 0]), ["t", "0 to 1", "0.9"]),
        (lambda: pfc.paths.table([0, 0.5, 0.5, 1], [0, 1, 2, 3], [3, 2, 1, 0]), ["t[1] is 0.5", "t[2] is 0.5"]),
        (lambda: pfc.paths.table([0, 0.3, 0.5, 1], [0, 0.5], [1, 0.5, 0.4, 0]), ["alpha", "4 values", "2"]),
        (lambda: pfc.paths.table([0, 0.3, 0.5, 1], [0, 1, 2, 3, 4], [3, 2, 1, 0]), ["alpha has 5", "t has 4"]),
        (lambda: pfc.paths.table([0, 0.3, 0.5, 1], [0, np.nan, 1, 2], [3, 2, 1, 0]), ["alpha[1] is nan"]),
        (lambda: pfc.paths.table([0, 0.3, 0.5, 1], [0, 1, 2, 3], [1, -0.5, 0.4, 0]), ["sigma[1] is -0.5"]),
        (lambda: pfc.paths.table([0, 0.3, 0.5, 1], [3, 2, 1, 0], [0, 1, 2, 3]), ["alpha[-1]", "positive"]),
        (lambda: pfc.paths.table([0, 0.3, 0.5, 1], [0, 1, 2, 3], [1, 1, 1, 2]), ["rise strictly", "alpha / sigma[2] is 2"]),
        (lambda: pfc.paths.table([0, 0.5, 0.6, 1], [0, 0.5, 1, 1], [1, 0.5, 0.1, 0]), []),
        (lambda: pfc.paths.from_alphas_cumprod([0.1, 0.5, 0.9, 0.95]), ["alphas_cumprod", "fall strictly", "[1] is 0.5"]),
        (lambda: pfc.paths.from_alphas_cumprod([1.0, 0.5, 0.1, 0.01]), ["alphas_cumprod", "(0, 1)", "1.0"]),
        (lambda: pfc.paths.from_alphas_cumprod(ddpm()).time_of(1000), ["timestep is 1000", "0 to 999"]),
        (lambda: pfc.paths.get({"name": "table", "t": [0, 1]}), ["'table'", "alpha"]),
        (lambda: pfc.paths.get({"name": "table", "knots": [0, 1]}), ["'table'", "knots"]),
    ],
)  # fmt: skip
def test_refused(call, words):
    if not words:
        call()  # four points are enough
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_timesteps_of_a_discrete_schedule():
    acp = ddpm()
    path = pfc.paths.from_alphas_cumprod(torch.from_numpy(acp))
    every = np.arange(1000)[::-1]
    times = path.times_of(every)
    alpha, sigma, _, _ = path.coefficients(times)
    np.testing.assert_array_equal(alpha, np.sqrt(acp[every]))
    np.testing.assert_array_equal(sigma, np.sqrt(1 - acp[every]))
    assert times[0] == 0.0 and path.time_of(-1) == 1.0 and path.timesteps == 1000
    assert [float(c) for c in path.coefficients(1.0)][:2] == [1.0, 0.0]
    # What the network is told: exactly the integers at their times, and never less than 0.
    assert path.network_times(torch.tensor(times, dtype=torch.float64)).tolist() == every.tolist()
    between = torch.tensor([path.time_of(41.25), path.time_of(-0.5), 1.0], dtype=torch.float64)
    np.testing.assert_allclose(path.network_times(between), [41.25, 0.0, 0.0], rtol=1e-13)
    # Between timesteps lambda is between.
    lam = np.log(alpha / sigma)
    middle = path.coefficients(path.times_of(every[:-1] - 0.5))
    assert (np.log(middle[0] / middle[1]) > lam[:-1]).all() and (
        np.log(middle[0] / middle[1]) < lam[1:]
    ).all()


def ddim_in_alphas_cumprod(eps, x, acp, timesteps, last):
    """DDIM (Song, Meng & Ermon 2021, equation 12, eta = 0) as it is usually written; `last` is the final alphas_cumprod."""
    for i, k in enumerate(timesteps):
        a_t = acp[k]
        a_next = acp[timesteps[i + 1]] if i + 1 < len(timesteps) else last
        e = eps(x, k)
        pred_x0 = (x - np.sqrt(1 - a_t) * e) / np.sqrt(a_t)
        x = np.sqrt(a_next) * pred_x0 + np.sqrt(1 - a_next) * e
    return x


def eps_of_integers(x, k):
    """Any network that knows integer timesteps alone."""
    assert float(k) == int(k)
    return np.tanh(0.7 * x + 0.001 * k) + 0.2 * np.sin(0.01 * k)


@pytest.mark.parametrize("prediction", ["noise", "v", "data"])
@pytest.mark.parametrize("to_data", [True, False])
def test_ddim_in_its_usual_form(prediction, to_data):
    """On the discrete schedule, in float64, to 1e-12: ending on the data, or at timestep 0 ("set_alpha_to_one" off)."""
    acp = ddpm()
    path = pfc.paths.from_alphas_cumprod(acp)
    timesteps = list(range(981, 0, -20))
    end = [-1] if to_data else [0]
    x = np.linspace(-2.0, 2.0, 9)

    def net(x, k):
        """The same network, said as `prediction`."""
        e = eps_of_integers(x, k)
        alpha, sigma = np.sqrt(acp[int(k)]), np.sqrt(1 - acp[int(k)])
        data = (x - sigma * e) / alpha
        return {"noise": e, "data": data, "v": alpha * e - sigma * data}[prediction]

    told = []

    def torch_net(x, k):
        assert k.dtype == torch.int64
        told.append(int(k[0]))
        return torch.from_numpy(net(x.numpy(), int(k[0])))

    field = pfc.Field(torch_net, prediction, path, time_dtype=torch.int64)
    plan = pfc.plan("ddim", grid=path.times_of(timesteps + end), path=path, prediction=prediction)
    found = pfc.Sampler(plan)(field, x0=torch.from_numpy(x)[None])[0].numpy()
    wanted = ddim_in_alphas_cumprod(eps_of_integers, x, acp, timesteps, 1.0 if to_data else acp[0])
    assert told == timesteps
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_schedule_with_zero_terminal_signal():
    """v-prediction begins on pure noise; a noise prediction says nothing of the data there and is refused."""
    acp = ddpm()
    acp[-1] = 0.0
    path = pfc.paths.from_alphas_cumprod(acp)
    assert [float(c) for c in path.coefficients(0.0)][:2] == [0.0, 1.0]
    with pytest.raises(ValueError, match="'noise' does not determine the data"):
        pfc.plan("dpmpp_2m", 10, path=path, prediction="noise")
    plan = pfc.plan("dpmpp_2m", 10, path=path, prediction="v")
    m = 0.4

    def field(x, t):
        alpha, sigma, _, _ = path.coefficients(t)
        noise = (x - alpha * m) / sigma
        return alpha * noise - sigma * m

    np.testing.assert_allclose(executor.run(plan.to_dict(), field, np.linspace(-1, 1, 4))[-1], m, atol=1e-12)


def test_integer_timesteps_are_rounded_to_the_nearest_and_only_on_request():
    path = pfc.paths.from_alphas_cumprod(ddpm())
    grid = path.times_of([999, 700.75, 300.5, 20.25, -1])
    plan = pfc.plan("euler", grid=grid, path=path, prediction="noise")

    def told(**options):
        seen = []

        def net(x, k):
            seen.append((k.dtype, float(k[0])))
            return torch.zeros_like(x)

        pfc.Sampler(plan)(pfc.Field(net, "noise", path, **options), x0=torch.zeros(1, 2))
        return seen

    assert [k for _, k in told()] == pytest.approx([999, 700.75, 300.5, 20.25], rel=1e-6)
    # 700.75 is 701, which truncation would make 700; a half goes to the even one.
    assert told(round_time=True) == [(torch.float32, float(k)) for k in (999, 701, 300, 20)]
    assert told(round_time=True, time_dtype=torch.int64) == [
        (torch.int64, float(k)) for k in (999, 701, 300, 20)
    ]
    with pytest.raises(ValueError, match=r"time_dtype is torch\.int64.*700\.75.*round_time=True"):
        told(time_dtype=torch.int64)
    for wrong in ({"round_time": 1}, {"time_dtype": torch.bool}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            told(**wrong)


def test_a_schedule_as_dense_as_the_continuous_path_agrees_with_it():
    """alphas_cumprod taken from the VP path: samples of a Gaussian through both agree as the table is refined."""
    exact = fields.gaussian("vp")
    x0 = np.linspace(-1.5, 1.5, 7)
    gaps = []
    for count in (100, 1000):
        knots = 1 - (np.arange(count) + 1) / count
        path = pfc.paths.from_alphas_cumprod(paths.vp(knots)[0] ** 2)
        grid = np.linspace(0.05, 0.9, 20)
        ours, theirs = (
            executor.run(
                pfc.plan("unipc", grid=grid, path=p, prediction="noise").to_dict(), exact.of("noise"), x0
            )[-1]
            for p in (path, "vp")
        )
        gaps.append(np.abs(ours - theirs).max())
    assert gaps[0] < 1e-3 and gaps[1] < gaps[0] / 20
