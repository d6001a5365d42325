"""Pictures: what is drawn is the plan's grid, lambda and coefficients, and the trajectory's states."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")  # no display

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import paths
from reference.torch_fields import ring


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


PLANS = {
    "unipc": lambda: pfc.plan("unipc", 10),
    "vp": lambda: pfc.plan("ddim", 5, path="vp", prediction="noise"),
    "inside": lambda: pfc.plan("dpmpp_3m", grid=np.linspace(0.1, 0.9, 6)),
    "stages": lambda: pfc.plan("dopri5", 3),
    "noise": lambda: pfc.plan("edm_heun", 4, s_churn=2.0),
    "one step": lambda: pfc.plan("euler", 1),
}


@pytest.mark.parametrize("name", PLANS)
def test_grid_and_evaluations(name):
    plan = PLANS[name]()
    ax = plan.plot().axes[0]
    found = lines(ax)
    assert np.array_equal(found["grid"].get_ydata(), plan.times)
    assert np.array_equal(found["grid"].get_xdata(), np.arange(plan.steps + 1))
    evaluations = found[f"{plan.nfe} evaluations"]
    assert np.array_equal(evaluations.get_ydata(), [row.t for row in plan.rows if row.evaluates])
    on_line = np.interp(evaluations.get_xdata(), np.arange(plan.steps + 1), plan.times)
    np.testing.assert_allclose(on_line, evaluations.get_ydata(), atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_lambda_and_its_infinite_ends(name):
    plan = PLANS[name]()
    figure = plan.plot()
    ax = figure.axes[1]
    values = []
    for t in plan.times:
        alpha, sigma, _, _ = paths.coefficients(plan.path.name, t)
        with np.errstate(divide="ignore"):
            values.append(np.log(alpha) - np.log(sigma))
    finite = np.isfinite(values)
    drawn = lines(ax)["lambda"]
    np.testing.assert_allclose(drawn.get_ydata(), np.array(values)[finite], atol=1e-9)
    assert np.array_equal(drawn.get_xdata(), np.flatnonzero(finite))
    infinite = np.flatnonzero(~finite)
    marks = [line for line in ax.get_lines() if line.get_label() == "_infinite"]
    assert [int(mark.get_xdata()[0]) for mark in marks] == infinite.tolist()
    assert [mark.get_marker() for mark in marks] == ["^" if values[i] > 0 else "v" for i in infinite]
    assert [text.get_text() for text in ax.texts] == ["+∞" if values[i] > 0 else "-∞" for i in infinite]
    low, high = ax.get_ylim()
    for mark in marks:  # inside the picture, beyond every finite value
        (at,) = mark.get_ydata()
        assert low < at < high
        beyond = np.array(values)[finite] - at
        assert np.all(beyond < 0 if mark.get_marker() == "^" else beyond > 0)


@pytest.mark.parametrize("name", PLANS)
def test_coefficients(name):
    """Every number of every row is in the table that is drawn, once, and the colours follow its sign."""
    plan = PLANS[name]()
    values, names = pfc.plot.coefficients(plan)
    assert len(set(names)) == len(names)
    described = plan.to_dict()["rows"]
    moves = any(not row.point_is_state for row in plan.rows)
    for i, row in enumerate(described):
        wanted = {"x": row.get("a", 1.0), "D": row.get("b_new", 0.0)}
        wanted |= {f"D{k}": v for k, v in row.get("b", {}).items()}
        wanted |= {f"noise{k}": v for k, v in row.get("s", {}).items()}
        if moves:
            wanted |= {"y: x": row.get("c", 1.0), "y: D": row.get("e_new", 0.0)}
            wanted |= {f"y: D{k}": v for k, v in row.get("e", {}).items()}
            wanted |= {f"y: noise{k}": v for k, v in row.get("r", {}).items()}
        drawn = {name: value for name, value in zip(names, values[i], strict=True) if value != 0.0}
        assert drawn == {name: value for name, value in wanted.items() if value != 0.0}
    ax = plan.plot().axes[2]
    (image,) = ax.get_images()
    assert np.array_equal(np.sign(image.get_array()), np.sign(values))
    assert [label.get_text() for label in ax.get_xticklabels()][: len(names)] == names
    texts = [text.get_text() for text in ax.texts]
    assert texts == [f"{value:.3g}" for value in values.flatten() if value != 0.0]


def test_axes_of_ones_own_and_a_file(tmp_path):
    plan = pfc.plan("unipc", 4)
    figure, axes = plt.subplots(1, 3)
    assert plan.plot(axes) is figure
    assert np.array_equal(lines(axes[0])["grid"].get_ydata(), plan.times)
    figure.savefig(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="axes must be three"):
        plan.plot(axes[:2])


def test_a_large_plan_draws_quickly_without_numbers():
    ax = pfc.plan("dopri5", 50).plot().axes[2]
    assert not ax.texts


def moved(steps=6, batch=5, **options):
    sampler = pfc.Sampler(pfc.plan("ab2", steps))
    return sampler(ring().of("velocity"), shape=(2,), seeds=range(batch), return_trajectory=True, **options)


def test_trajectories_are_the_states():
    run = moved()
    ax = pfc.plot.trajectories(run)
    (collection,) = ax.collections
    states = run.states.double().numpy()
    segments = np.array(collection.get_segments()).reshape(6, 5, 2, 2)
    np.testing.assert_array_equal(segments[:, :, 0], states[:-1])
    np.testing.assert_array_equal(segments[:, :, 1], states[1:])
    colours = np.asarray(collection.get_array()).reshape(6, 5)
    np.testing.assert_allclose(colours, np.broadcast_to((np.arange(6)[:, None] + 0.5) / 6, (6, 5)))
    found = lines(ax)
    np.testing.assert_array_equal(np.stack(found["t = 0"].get_data(), 1), states[0])
    np.testing.assert_array_equal(np.stack(found["t = 1"].get_data(), 1), states[-1])
    low, high = ax.get_xlim()
    assert low < states[..., 0].min() < states[..., 0].max() < high


def test_at_most_so_many_on_given_axes():
    _, ax = plt.subplots()
    assert pfc.plot.trajectories(moved(batch=9), most=4, ax=ax) is ax
    assert len(ax.collections[0].get_segments()) == 6 * 4


@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "v"])
def test_the_background_is_the_velocity_whatever_is_predicted(prediction):
    mixture = ring(path="trigonometric")
    field = pfc.Field(lambda x, t: -mixture.of(prediction)(x, t), prediction, "trigonometric", sign=-1)
    quiver = pfc.plot.trajectories(moved(), field=field, time=0.4).collections[1]
    points = torch.from_numpy(quiver.get_offsets().astype(np.float64))
    wanted = mixture.of("velocity")(points, torch.full((len(points),), 0.4)).numpy()
    np.testing.assert_allclose(np.stack([quiver.U, quiver.V], 1), wanted, atol=1e-4)


def test_streamlines_and_a_condition():
    def net(x, t, y):
        assert y.shape == (len(x), 1)
        return ring().of("velocity")(x, t) + y

    ax = pfc.plot.trajectories(moved(), field=net, background="stream", cond={"y": torch.zeros(1, 1)})
    assert len(ax.collections) == 2  # the trajectories and the streamlines
    assert ax.get_title() == "velocity at t = 0.5"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trajectory": pfc.Trajectory(torch.zeros(3), torch.zeros(3, 4, 3))}, r"\[S \+ 1, B, 2\]"),
        ({"background": "arrows"}, "background must be 'quiver' or 'stream'"),
        ({"time": 1.5, "field": ring().of("velocity")}, r"time must lie in \[0, 1\]"),
        ({"time": 0.0, "field": pfc.Field(ring().of("noise"), "noise")}, "noise does not determine the velocity"),
        ({"most": 0}, "most must be positive"),
    ],
)  # fmt: skip
def test_refusals(changes, says):
    with pytest.raises(ValueError, match=says):
        pfc.plot.trajectories(**{"trajectory": moved(), **changes})


def test_a_tensor_is_no_trajectory():
    with pytest.raises(TypeError, match="return_trajectory=True"):
        pfc.plot.trajectories(torch.zeros(3, 4, 2))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (pfc.plan("euler", 2).plot, lambda: pfc.plot.trajectories(moved())):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            draw()


def test_importing_the_package_does_not_import_matplotlib():
    import subprocess

    code = "import sys, pyflowcore; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_path_that_is_not_known_has_no_lambda():
    path = pfc.paths.custom(lambda t: t.sin(), lambda t: 1 - t)
    loaded = pfc.Plan.from_json(pfc.plan("heun", 3, path=path).to_json())
    figure = loaded.plot()
    assert not figure.axes[1].lines and "not known" in figure.axes[1].texts[0].get_text()
