"""Plans: every coefficient of a trajectory in one table, built once, in float64, before sampling starts.

The builders live in ``csrc/plan``, and ``building.py`` calls them; here a plan gets its Python face: printing, JSON, and the
tensor that kernels read.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from . import _core, paths, predictions
from .ops.interpolate import prediction_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["Plan", "RowFacts", "log_ratios"]

_FORMAT = "pyflowcore.plan"
_VERSION = 1

# The scalars of a row and the values that JSON leaves out.
_SCALARS: dict[str, Any] = {
    "evaluates": True, "t": None, "field_t": None, "step": None, "completes_step": False, "in_scale": 1.0, "p": 0.0, "q": 1.0,
    "a": 1.0, "a_minus_1": 0.0, "c": 1.0, "c_minus_1": 0.0, "b_new": 0.0, "e_new": 0.0, "store": -1,
}  # fmt: skip
_LISTS = ("b", "e", "s", "r")
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}


class RowFacts(NamedTuple):
    """What the loop asks of a row, as plain Python values: reading them from the compiled object costs ten times as much."""

    evaluates: bool
    t: float
    step: int
    completes_step: bool
    in_scale: float
    p: float
    store: int
    point_is_state: bool
    after: int | None  # the next row that evaluates the field; None after the last
    field_t: float  # the field's own time; t but for plans along another path


def _facts(rows: Sequence[_core.Row]) -> tuple[RowFacts, ...]:
    facts: list[RowFacts] = []
    after: int | None = None
    for i in range(len(rows) - 1, -1, -1):
        row = rows[i]
        scalars = (row.evaluates, row.t, row.step, row.completes_step, row.in_scale, row.p, row.store)
        field_t = row.t if row.field_t is None else row.field_t
        facts.append(RowFacts(*scalars, row.point_is_state, after, field_t))
        after = i if row.evaluates else after
    return tuple(reversed(facts))


class Plan:
    """A trajectory's table of coefficients; from :func:`plan`, ``Plan.from_json`` or ``Plan.from_dict``. Immutable.

    Attributes:
        solver, working: names; the slots hold ``working``.
        prediction: what the field must predict: a name, ``pfc.EDM(...)`` or ``pfc.Scaled(...)``.
        path: the field's path.
        along: the path that the plan integrates on and whose times its own are; the field's, unless asked for.
        times: the grid, steps + 1 float64 numbers.
        rows: the rows, in order (``csrc/core/row.hpp`` says what a row does).
        table: the same as a float64 tensor [rows, 56], for ``pfc.ops.combine_``.
        row_times: the field's time of each row, float64 [rows]; of a row without an evaluation, that of the one next to it.
        steps, nfe, slots, draws: numbers of steps, evaluations, remembered predictions, noise draws.
    """

    def __init__(self, core: _core.Plan) -> None:
        self._core = core
        self.solver: str = core.solver
        self.path = paths.from_core(core.path)
        self.along = self.path if core.along is None else paths.from_core(core.along)
        self.prediction: predictions.AnyPrediction = predictions.from_core(core.prediction)
        self.working: str = core.working.name
        self.times: tuple[float, ...] = tuple(core.times)
        self.steps: int = core.steps
        self.nfe: int = core.nfe
        self.slots: int = core.slots
        self.draws: int = core.draws
        self.table: torch.Tensor = torch.from_numpy(core.table())
        self._largest = float(self.table.abs().max())
        self.facts = _facts(core.rows)
        # Never written, so threads may share it: what maps times copies first.
        self.row_times = torch.tensor(_field_times(self.facts), dtype=torch.float64)

    def check_range(self, dtype: torch.dtype) -> None:
        """Refuses a state's dtype in which a coefficient is infinite.

        Raises:
            ValueError: naming the row, its step and the coefficient.
        """
        if self._largest <= _LARGEST[dtype]:
            return
        row, column = divmod(int(self.table.abs().argmax()), self.table.shape[1])
        starts = [
            (at, name) for name, at in _core.record.items() if name not in ("width", "max_slots", "max_draws")
        ]
        at, name = max(pair for pair in starts if pair[0] <= column)
        facts = self.facts[row]
        raise ValueError(
            f"dtype: {name}{'' if name not in _LISTS else f' of entry {column - at}'} of row {row} is "
            f"{float(self.table[row, column]):g} at step {facts.step} (t = {facts.t:g}), beyond {dtype}; use float64, or begin "
            "and end the grid further inside (0, 1)"
        )

    def on(self, path: paths.Path, prediction: predictions.AnyPrediction) -> Plan:
        """This plan with the path and the prediction of a field that it fits, where it knows its own by their values alone: a
        plan that was loaded cannot hold functions."""
        if not isinstance(self.path, paths.SavedPath) and not isinstance(
            self.prediction, predictions.SavedScaling
        ):
            return self
        return _on(self, path, prediction)

    @property
    def rows(self) -> tuple[_core.Row, ...]:
        """Copies of the rows: changing one changes nothing here."""
        return tuple(self._core.rows)

    def data_coefficients(self) -> list[tuple[float, float]]:
        """(p, q) of each row with the data that its evaluation predicts = p y + q out, y the plan's point; not finite where the
        prediction does not determine it, and of a row that evaluates nothing.

        The field says its data at a point of its own path, which is y times the factor of its input less the prediction's
        own."""
        on, kind = self.path._core, predictions.to_core(self.prediction)
        pairs, shown = [], 1.0
        for row in self.facts:
            pair = float("nan"), float("nan")
            if row.evaluates:
                p, q = _core.convert(on, kind, _core.Prediction.data, row.field_t)
                pair = p * shown / _core.ask(on, kind, None, row.field_t)[1], q
            pairs.append(pair)
            shown = row.in_scale
        return pairs

    def __copy__(self) -> Plan:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.from_dict, (
            {**self.to_dict(), **{k: v for k, v in self.functions().items() if _pickles(v)}},
        )

    def functions(self) -> dict[str, Any]:
        """Those of path, along and prediction that are objects with functions, which :meth:`to_dict` describes by values alone;
        :meth:`from_dict` takes them in its place."""
        given = {"path": self.path, "along": self.along, "prediction": self.prediction}
        if self._core.along is None:
            del given["along"]
        return {k: v for k, v in given.items() if isinstance(v, (paths.Custom, predictions.Scaled))}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description that leaves out what is at its default."""
        rows = []
        for row in self.rows:
            entry = {k: getattr(row, k) for k, default in _SCALARS.items() if getattr(row, k) != default}
            for name in ("b", "e"):
                if terms := getattr(row, name):
                    entry[name] = {str(term.slot): term.coefficient for term in terms}
            for name in ("s", "r"):
                if draws := getattr(row, name):
                    entry[name] = {str(draw.index): draw.coefficient for draw in draws}
            rows.append(entry)
        return {
            "format": _FORMAT, "version": _VERSION, "solver": self.solver, "path": self.path.to_dict(),
            **({} if self._core.along is None else {"along": self.along.to_dict()}),
            "prediction": self.prediction if isinstance(self.prediction, str) else self.prediction.to_dict(),
            "working": self.working, "times": list(self.times), "slots": self.slots, "rows": rows,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`; also the way to write a plan by hand.

        Raises:
            TypeError, ValueError: naming the row and the key of what is missing, unknown, of another type (no text for a
                number, no number for a flag), not finite, or of no use to a kernel: a slot that the plan does not have or
                that is read before a row wrote it, steps completed out of order, times that are not strictly monotone.
        """
        data = dict(_typed(description, dict, "a plan's description"))
        if data.pop("format", None) != _FORMAT:
            raise ValueError(f"format: this is not a plan (expected {_FORMAT!r})")
        if (version := data.pop("version", None)) != _VERSION:
            raise ValueError(f"version is {version!r}, this pyflowcore reads {_VERSION}")
        needed = ("solver", "path", "prediction", "working", "times", "slots", "rows")
        if missing := [name for name in needed if name not in data]:
            raise ValueError(f"a plan needs {', '.join(missing)}")
        if unknown := sorted(set(data) - set(needed) - {"along"}):
            raise ValueError(f"a plan has no {', '.join(unknown)}; allowed are {', '.join(needed)}, along")
        along = data.get("along")
        times = [_typed(t, float, f"times[{i}]") for i, t in enumerate(_typed(data["times"], list, "times"))]
        rows = [_row(entry, i) for i, entry in enumerate(_typed(data["rows"], list, "rows"))]
        return cls(
            _core.Plan(
                _typed(data["solver"], str, "solver"), paths.get(data["path"])._core,
                predictions.to_core(predictions.get(data["prediction"])),
                prediction_kind(data["working"], "working"), times, rows, _typed(data["slots"], int, "slots"),
                None if along is None else paths.get(along, "along")._core,
            )
        )  # fmt: skip

    def to_json(self, indent: int | None = None) -> str:
        """The plan as JSON; every number survives the round trip to the last bit."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """A plan from :meth:`to_json`'s text."""
        try:
            data = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise ValueError(f"text is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"text must hold a JSON object, got {type(data).__name__}")
        return cls.from_dict(data)

    def plot(self, axes: Sequence[Axes] | None = None) -> Figure:
        """Draws the grid, lambda and the coefficients: ``pfc.plot.plan``. Needs matplotlib."""
        from . import plot

        return plot.plan(self, axes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.solver, self.times, self.nfe))

    def __repr__(self) -> str:
        facts = f"steps={self.steps}, nfe={self.nfe}, path={self.path.name!r}, prediction={self.prediction!r}"
        if self._core.along is not None:
            facts += f", along={self.along.name!r}"
        return f"Plan({self.solver!r}, {facts})"

    def __str__(self) -> str:
        head = (
            f"{self.solver}: {self.steps} steps, {self.nfe} evaluations, {self.slots} slots, {self.draws} noise draws; "
            f"{self.prediction} on the {self.path.name} path"
            + ("" if self._core.along is None else f", integrated along the {self.along.name} path")
            + f", t from {self.times[0]:g} to {self.times[-1]:g}"
        )
        if isinstance(self.along, paths.SavedPath):  # lambda is not known
            levels: Sequence[float | None] = [None] * len(self.facts)
        else:
            levels = log_ratios(self.along, [row.t for row in self.facts]).tolist()
        lines = [_describe(i, row, levels[i]) for i, row in enumerate(self.rows)]
        return "\n".join([head, *lines])


# What it returns belongs to the plan, so a compiled function may take it as constant.
@torch.compiler.assume_constant_result
def _on(plan: Plan, path: paths.Path, prediction: predictions.AnyPrediction) -> Plan:
    live = object.__new__(Plan)
    live.__dict__.update(plan.__dict__)
    if plan.path == path:
        live.along = path if plan.along == path else plan.along
        live.path = path
    if plan.prediction == prediction:
        live.prediction = prediction
    return live


def _pickles(value: object) -> bool:
    """Functions of a module do, lambdas do not."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _field_times(facts: Sequence[RowFacts]) -> list[float]:
    """A row that evaluates nothing has the time of the evaluation next to it; at its own the network may have none."""
    times: list[float] = []
    for row in facts:
        near = row if row.evaluates or row.after is None else facts[row.after]
        times.append(near.field_t if near.evaluates or not times else times[-1])
    return times


class _Twice:
    """Stands for the value of a key that a JSON object has twice: every check of a value refuses it."""

    def __repr__(self) -> str:
        return "two values: the key stands twice"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = _Twice() if key in found else value
    return found


def _typed(value: Any, kind: type, where: str) -> Any:
    """The value as a bool, an int, a float, a str, a list or a dict, if it is one: nothing is read as what it is not."""
    of_numbers = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, (bool, np.bool_)),
        int: of_numbers and isinstance(value, (int, np.integer)),
        float: of_numbers,
        list: isinstance(value, (list, tuple)),
    }.get(kind, isinstance(value, kind))
    if not fits:
        names = {
            bool: "true or false",
            int: "an integer",
            float: "a number",
            str: "text",
            list: "a list",
            dict: "an object",
        }
        raise TypeError(f"{where} must be {names[kind]}, got {type(value).__name__} {value!r}")
    if kind is int and not -(2**31) <= value < 2**31:
        raise ValueError(f"{where} is {value}, too large for an index")
    try:
        return kind(value)
    except OverflowError:
        raise ValueError(f"{where} is {value}, too large for float64") from None


def _indexed(values: Any, where: str, of: str) -> list[tuple[int, float]]:
    """Coefficients by the index that they are for, in order. An index is written one way only, so none can stand twice."""
    found: dict[int, float] = {}
    for key, value in _typed(values, dict, where).items():
        text = str(key) if isinstance(key, (str, int)) and not isinstance(key, bool) else ""
        if not (text.isascii() and text.isdigit() and text == str(int(text))):
            raise ValueError(f"{where} has the key {key!r}; allowed are numbers of {of}: '0', '1', ...")
        if _typed(int(text), int, f"{where}: the key") in found:
            raise ValueError(f"{where} has the key {key!r} twice")
        found[int(text)] = _typed(value, float, f"{where}[{text!r}]")
    return sorted(found.items())


def _row(entry: Any, index: int) -> _core.Row:
    row, where = _core.Row(), f"rows[{index}]"
    values = dict(_typed(entry, dict, where))
    if unknown := sorted(str(key) for key in set(values) - set(_SCALARS) - set(_LISTS)):
        raise ValueError(
            f"{where} has no {', '.join(unknown)}; allowed are {', '.join([*_SCALARS, *_LISTS])}"
        )
    for name in ("t", "step"):
        if name not in values:
            raise ValueError(f"{where} needs {name}")
    for name in _SCALARS:
        if name in values:
            kind = float if name == "field_t" else type(getattr(row, name))
            values[name] = _typed(values[name], kind, f"{where}: {name}")
    for name, minus in (("a", "a_minus_1"), ("c", "c_minus_1")):
        # Given one, the other follows from it; both are kept where a builder knew a - 1 better.
        if name in values and minus not in values:
            values[minus] = values[name] - 1.0
        elif minus in values and name not in values:
            values[name] = 1.0 + values[minus]
        elif name in values and abs(values[name] - 1.0 - values[minus]) > 1e-12 * max(1.0, abs(values[name])):
            raise ValueError(
                f"{where}: {name} is {values[name]} and {minus} is {values[minus]}; they disagree"
            )
    for name in _SCALARS:
        if name in values:
            setattr(row, name, values[name])
    for name in ("b", "e"):
        terms = _indexed(values.get(name, {}), f"{where}: {name}", "slots")
        setattr(row, name, [_core.Term(*term) for term in terms])
    for name in ("s", "r"):
        draws = _indexed(values.get(name, {}), f"{where}: {name}", "draws")
        setattr(row, name, [_core.Draw(*draw) for draw in draws])
    return row


def _sum(
    base: str, factor: float, fresh: float, terms: Sequence[_core.Term], draws: Sequence[_core.Draw]
) -> str:
    parts = [] if factor == 0.0 else [base if factor == 1.0 else f"{factor:.6g} {base}"]
    parts += [f"{fresh:.6g} D"] if fresh else []
    parts += [f"{term.coefficient:.6g} D{term.slot}" for term in terms]
    parts += [f"{draw.coefficient:.6g} noise{draw.index}" for draw in draws]
    return (" + ".join(parts) or "0").replace("+ -", "- ")


def log_ratios(path: paths.Path, times: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """lambda = log(alpha / sigma) at the times, float64; infinite where alpha or sigma is 0."""
    alpha, sigma, _, _ = path.coefficients(times)
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def _describe(index: int, row: _core.Row, level: float | None) -> str:
    text = f"{index:4d}  step {row.step:<3d} t = {row.t:<9.6f}"
    text += "" if level is None else f" lambda = {level:<8.4g}"
    if row.field_t is not None:
        text += f" field's t = {row.field_t:<9.6f}"
    if row.evaluates:
        kept = "" if row.store < 0 else f" -> D{row.store}"
        made = f"{row.q:.6g} out" if row.q != 1.0 else "out"
        text += f" D = {f'{row.p:.6g} y + ' if row.p else ''}{made}{kept};"
    text += f" x <- {_sum('x', row.a, row.b_new, row.b, row.s)}"
    if not row.point_is_state:
        text += f"; y <- {_sum('x', row.c, row.e_new, row.e, row.r)}"
    return text + ("" if row.in_scale == 1.0 else f"; input scaled by {row.in_scale:.6g}")
