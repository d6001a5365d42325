"""Pictures of plans and of trajectories in the plane. matplotlib is imported when something is drawn, and not before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import _core, predictions
from .field import Field, as_field
from .paths import SavedPath
from .plans import Plan, log_ratios
from .run import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coefficients", "plan", "trajectories"]

Float = npt.NDArray[np.float64]

_INK, _SOFT, _ACCENT = "#1f2a44", "#9aa5b8", "#c8553d"


def _matplotlib() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("plots need matplotlib: pip install matplotlib") from None
    return plt


# ------------------------------------------------------------------------------------------------------------ plans
def coefficients(plan: Plan) -> tuple[Float, list[str]]:
    """Every coefficient of a plan's rows, [rows, terms], and what each multiplies. Terms that no row has are left out.

    "x" is the state, "D" the row's own prediction, "D0" the one in slot 0, "noise0" draw 0, in the new state. The same after
    "y: ", in the next point, for plans in which some row's is not the state itself.
    """
    columns: dict[str, list[float]] = {}
    rows = plan.rows

    def put(name: str, index: int, value: float) -> None:
        columns.setdefault(name, [0.0] * len(rows))[index] += value

    for i, row in enumerate(rows):
        put("x", i, row.a)
        put("D", i, row.b_new)
        for term in row.b:
            put(f"D{term.slot}", i, term.coefficient)
        for draw in row.s:
            put(f"noise{draw.index}", i, draw.coefficient)
    if any(not row.point_is_state for row in rows):
        for i, row in enumerate(rows):
            put("y: x", i, row.c)
            put("y: D", i, row.e_new)
            for term in row.e:
                put(f"y: D{term.slot}", i, term.coefficient)
            for draw in row.r:
                put(f"y: noise{draw.index}", i, draw.coefficient)
    kept = [name for name in columns if name in ("x", "D") or any(columns[name])]

    def place(name: str) -> tuple[bool, int, int]:
        what = name.removeprefix("y: ")
        kind = 0 if what == "x" else 1 if what == "D" else 2 if what.startswith("D") else 3
        digits = what.lstrip("Dnoisex")
        return name.startswith("y: "), kind, int(digits or 0)

    kept.sort(key=place)
    return np.array([columns[name] for name in kept], dtype=np.float64).T, kept


def plan(plan: Plan, axes: Sequence[Axes] | None = None) -> Figure:
    """Draws a plan: its grid, lambda = log(alpha / sigma) on it, and every coefficient of its rows.

    Args:
        plan: any.
        axes: three, for the grid, lambda and the coefficients; by default a figure of their own.

    Returns:
        The figure. An infinite lambda, as at t = 0 and t = 1, is a triangle at the edge with its sign.

    Raises:
        ImportError: without matplotlib, naming the command that installs it.
        ValueError: another number of axes than three.
    """
    plt = _matplotlib()
    if axes is None:
        values, names = coefficients(plan)
        width = 5.2 + max(3.4, 0.62 * len(names) + 1.2)
        height = max(4.6, 0.3 * len(values) + 1.4)
        figure = plt.figure(figsize=(width, height), layout="constrained")
        cells = figure.add_gridspec(2, 2, width_ratios=[4.4, width - 5.2])
        first = figure.add_subplot(cells[0, 0])
        axes = [first, figure.add_subplot(cells[1, 0], sharex=first), figure.add_subplot(cells[:, 1])]
        figure.suptitle(
            f"{plan.solver}: {plan.steps} steps, {plan.nfe} evaluations; {plan.prediction} on the {plan.path.name} path"
        )
    elif len(axes) != 3:
        raise ValueError(f"axes must be three, for the grid, lambda and the coefficients; got {len(axes)}")
    _draw_grid(axes[0], plan)
    _draw_lambda(axes[1], plan)
    _draw_coefficients(axes[2], plan)
    drawn: Any = axes[0].figure
    return drawn


def _draw_grid(ax: Axes, plan: Plan) -> None:
    times = np.asarray(plan.times)
    ax.plot(np.arange(len(times)), times, "-o", color=_INK, markersize=4, label="grid")
    # An evaluation inside a step lies on the line between the step's two points.
    inside = [(row.step, row.t) for row in plan.rows if row.evaluates]
    where = [step + (t - times[step]) / (times[step + 1] - times[step]) for step, t in inside]
    label = f"{plan.nfe} evaluations"
    ax.plot(where, [t for _, t in inside], "o", color=_ACCENT, markersize=9, fillstyle="none", label=label)
    ax.set_ylabel("t")
    ax.legend(frameon=False, loc="best")
    _tidy(ax)


def _draw_lambda(ax: Axes, plan: Plan) -> None:
    if isinstance(plan.along, SavedPath):
        ax.annotate(
            "λ is not known:\nthe path's functions are not in the plan's JSON", (0.5, 0.5), xycoords="axes fraction",
            ha="center", va="center",
        )  # fmt: skip
        return
    values = log_ratios(plan.along, plan.times)
    steps, finite = np.arange(len(values)), np.isfinite(values)
    ax.plot(steps[finite], values[finite], "-o", color=_INK, markersize=4, label="lambda")
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (-1.0, 1.0)
    room = 0.25 * max(high - low, 1.0)
    for step in steps[~finite]:
        up = values[step] > 0
        edge = high + room if up else low - room
        near = step - 1 if step > 0 else step + 1
        if finite[near]:
            ax.plot([near, step], [values[near], edge], ":", color=_SOFT, label="_to infinity")
        ax.plot([step], [edge], "^" if up else "v", color=_ACCENT, markersize=8, label="_infinite")
        first = step == 0
        ax.annotate(
            "+∞" if up else "-∞", (step, edge), xytext=(9 if first else -9, 5 if up else -5), textcoords="offset points",
            ha="left" if first else "right", va="center", color=_ACCENT, fontsize=12,
        )  # fmt: skip
    ax.set_ylim(low - 1.5 * room, high + 1.5 * room)
    ax.set_xlabel("step")
    ax.set_ylabel("λ = log(α / σ)")
    _tidy(ax)


def _draw_coefficients(ax: Axes, plan: Plan) -> None:
    values, names = coefficients(plan)
    most = float(np.abs(values).max()) or 1.0
    # A root brings out the small ones; the numbers in the cells are the coefficients themselves.
    shown = np.sign(values) * np.sqrt(np.abs(values) / most)
    ax.imshow(shown, cmap="RdBu_r", vmin=-1.4, vmax=1.4, aspect="auto", interpolation="nearest")
    if values.size <= 400:
        for i, j in zip(*np.nonzero(values), strict=True):
            text = f"{values[i, j]:.3g}"
            dark = abs(shown[i, j]) > 0.95
            ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if dark else _INK)
    ax.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0)
    every = max(1, len(values) // 20)
    ax.set_yticks(range(0, len(values), every))
    ax.set_ylabel("row")
    ax.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(values) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="both", length=0)
    ax.set_title(
        "coefficients of the new state" + (" and the next point" if "y: x" in names else ""), fontsize=10
    )
    split = next((j for j, name in enumerate(names) if name.startswith("y: ")), None)
    if split is not None:
        ax.axvline(split - 0.5, color=_INK, linewidth=1.5)


def _tidy(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(color="#e6e9ef", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


# ----------------------------------------------------------------------------------------------------- trajectories
def trajectories(
    trajectory: Trajectory,
    *,
    field: Field | Callable[..., Tensor] | None = None,
    time: float | None = None,
    background: str = "quiver",
    cond: dict[str, Any] | None = None,
    most: int = 256,
    ax: Axes | None = None,
) -> Axes:
    """Draws trajectories in the plane, coloured by time, from the noise (hollow) to the samples (dots).

    Args:
        trajectory: of ``sampler(..., return_trajectory=True)``, states [S + 1, B, 2].
        field: draws its velocity at ``time`` behind them: a ``pfc.Field`` of any prediction, or a callable.
        time: default halfway between the trajectory's ends.
        background: "quiver" or "stream", of the field.
        cond: keyword arguments of the field, with tensors for one sample, [1, ...].
        most: so many of the trajectories are drawn, the first ones.
        ax: where to draw; by default a figure of its own, ``ax.figure``.

    Raises:
        ImportError: without matplotlib, naming the command that installs it.
        TypeError, ValueError: states that are not of two dimensions, a time outside the path, another background; a prediction
            that does not determine the velocity at that time.
    """
    plt = _matplotlib()
    from matplotlib.collections import LineCollection

    if not isinstance(trajectory, Trajectory):
        raise TypeError(
            "trajectory must be a pfc.Trajectory (sampler(..., return_trajectory=True)), got "
            f"{type(trajectory).__name__}"
        )
    states = trajectory.states.detach().cpu().double().numpy()
    if states.ndim != 3 or states.shape[2] != 2 or states.shape[1] == 0:
        raise ValueError(
            f"trajectory: states must have shape [S + 1, B, 2] with B > 0, got {list(states.shape)}"
        )
    if background not in ("quiver", "stream"):
        raise ValueError(f"background must be 'quiver' or 'stream', got {background!r}")
    if most < 1:
        raise ValueError(f"most must be positive, got {most}")
    times = trajectory.times.double().numpy()
    states = states[:, :most]
    if ax is None:
        ax = plt.figure(figsize=(6.4, 5.4), layout="constrained").add_subplot()
    # One collection for all: a line object each would take seconds to draw.
    pieces = np.stack([states[:-1], states[1:]], axis=2).reshape(-1, 2, 2)
    lines = LineCollection(list(pieces), cmap="viridis", linewidths=1.0, alpha=0.75, zorder=2)
    lines.set_array(np.repeat((times[:-1] + times[1:]) / 2, states.shape[1]))
    lines.set_clim(float(times.min()), float(times.max()))
    ax.add_collection(lines)
    ax.plot(
        *states[0].T, "o", color=_SOFT, markersize=4, fillstyle="none", zorder=3, label=f"t = {times[0]:g}"
    )
    ax.plot(*states[-1].T, "o", color=_ACCENT, markersize=3.5, zorder=4, label=f"t = {times[-1]:g}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.06)
    ax.autoscale_view()
    if field is not None:
        at = float(times[0] + times[-1]) / 2 if time is None else float(time)
        _draw_field(ax, states, as_field(field), at, background, cond or {}, trajectory.states)
    ax.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="upper left")
    ax.figure.colorbar(lines, ax=ax, label="t", shrink=0.8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def _draw_field(
    ax: Axes, states: Float, field: Field, t: float, background: str, cond: dict[str, Any], like: Tensor
) -> None:
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"time must lie in [0, 1], got {t}")
    kind = predictions.to_core(field.prediction)
    p, q = _core.convert(field.path._core, kind, _core.Prediction.velocity, t)
    if not (np.isfinite(p) and np.isfinite(q)):
        raise ValueError(
            f"time: the {field.prediction} does not determine the velocity at t = {t:g} on this path"
        )
    low, high = states.min((0, 1)), states.max((0, 1))
    low, high = low - 0.08 * (high - low) - 1e-6, high + 0.08 * (high - low) + 1e-6
    across, up = np.meshgrid(np.linspace(low[0], high[0], 22), np.linspace(low[1], high[1], 22))
    points = torch.from_numpy(np.stack([across, up], -1).reshape(-1, 2)).to(like)
    given = {key: _repeat(value, len(points)) for key, value in cond.items()}
    with torch.no_grad():
        out = field(points, torch.full((len(points),), t, dtype=points.dtype, device=points.device), **given)
    velocity = (p * points + q * out.to(points.dtype)).cpu().double().numpy().reshape(*across.shape, 2)
    if background == "quiver":
        ax.quiver(
            across, up, velocity[..., 0], velocity[..., 1], color=_SOFT, alpha=0.7, width=0.0025, zorder=1
        )
    else:
        ax.streamplot(
            across[0], up[:, 0], velocity[..., 0], velocity[..., 1], color="#c3cad6", linewidth=0.8, arrowsize=0.8,
            zorder=1,
        )  # fmt: skip
    ax.set_title(f"velocity at t = {t:g}", fontsize=10)


def _repeat(value: Any, count: int) -> Any:
    """A condition of one sample for every point of the background."""
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) and value.dim() else value
