"""Plans as JSON and as hand-written descriptions: to the last bit, and with readable refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyflowcore as pfc
from reference import catalogue, stochastic

FIXED = settings(derandomize=True, max_examples=80, deadline=None)


@given(
    case=st.sampled_from(sorted(catalogue.EVERY)),
    path=st.sampled_from(["linear", "trigonometric", "vp"]),
    prediction=st.sampled_from(["velocity", "data", "noise", "v"]),
    times=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=12, unique=True),
)
@FIXED
def test_round_trip_to_the_bit(case, path, prediction, times):
    solver, options = catalogue.EVERY[case]
    plan = pfc.plan(solver, grid=sorted(times), path=path, prediction=prediction, **options)
    again = pfc.Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert torch.equal(again.table.view(torch.int64), plan.table.view(torch.int64))
    assert again.times == plan.times
    assert (again.path, again.prediction, again.working) == (plan.path, plan.prediction, plan.working)
    assert (again.nfe, again.slots, again.draws, again.steps) == (
        plan.nfe,
        plan.slots,
        plan.draws,
        plan.steps,
    )


@pytest.mark.parametrize("name", sorted(stochastic.BUILDERS))
def test_stochastic_round_trip(name):
    plan = pfc.Plan.from_dict(stochastic.describe(name, np.linspace(0.1, 0.9, 7)))
    again = pfc.Plan.from_json(plan.to_json(indent=None))
    assert torch.equal(again.table, plan.table)
    assert again == plan


def test_the_path_keeps_its_parameters():
    plan = pfc.plan("ddim", 3, path=pfc.paths.VP(0.2, 12.0))
    assert pfc.Plan.from_json(plan.to_json()).path == pfc.paths.VP(0.2, 12.0)


def test_text_is_json_and_print_names_everything():
    plan = pfc.plan("heun", 3)
    assert json.loads(plan.to_json())["format"] == "pyflowcore.plan"
    text = str(plan)
    assert "heun: 3 steps, 5 evaluations, 1 slots" in text
    assert len(text.splitlines()) == 1 + len(plan.rows)
    assert "nfe=5" in repr(plan)


def edited(edit):
    description = pfc.plan("ab2", 4).to_dict()
    edit(description)
    return description


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.update(format="x"), "format"),
        (lambda d: d.update(version=99), "version is 99"),
        (lambda d: d.pop("times"), "needs times"),
        (lambda d: d.update(stepz=3), "has no stepz"),
        (lambda d: d.update(path="lin"), "path: unknown name 'lin', allowed are linear"),
        (lambda d: d.update(path={"name": "vp", "beta": 1}), "unknown options"),
        (lambda d: d.update(prediction="eps"), "prediction: unknown name 'eps'"),
        (lambda d: d.update(working="eps"), "working: unknown name 'eps'"),
        (lambda d: d.update(times=[0.0, 0.5, 0.5, 0.7, 1.0]), "times must increase"),
        (lambda d: d.update(times=[0.0, 2.0]), r"times\[1\] is 2"),
        (lambda d: d.update(rows=[]), "at least one row"),
        (lambda d: d.update(slots=17), "at most 16"),
        (lambda d: d.update(slots=0), r"row 0: store is 0"),
        (lambda d: d["rows"][0].update(bnew=1.0), r"rows\[0\] has no bnew"),
        (lambda d: d["rows"][1].pop("t"), r"rows\[1\] needs t"),
        (lambda d: d["rows"][1].update(step=4), "row 1: step is 4"),
        (lambda d: d["rows"][1].update(q=float("inf")), r"row 1: q is inf at step 1 \(t = 0.25\)"),
        (lambda d: d["rows"][1].update(b={"9": 1.0}), "row 1: slot 9"),
        (lambda d: d["rows"][0].update(b={"1": 1.0}), "row 0: slot 1 is read before"),
        (lambda d: d["rows"][1].update(store=0), "row 1: slot 0 is read and written"),
        (
            lambda d: d["rows"][1].update(s={str(2**30 + 1): 1.0}),
            "row 1: draw index 1073741825 is not in 0 to",
        ),
        (lambda d: d["rows"][1].update(s={str(n): 1.0 for n in range(5)}), "more than 4 different draws"),
        (lambda d: d["rows"][1].update(evaluates=False), "row 1: a row without an evaluation"),
        (lambda d: d["rows"][1].update(a=0.5, a_minus_1=0.5), "they disagree"),
    ],
)
def test_refusals(edit, says):
    with pytest.raises(ValueError, match=says):
        pfc.Plan.from_dict(edited(edit))


def put(row, **entries):
    return lambda d: d["rows"][row].update(entries)


LOOSE = {
    "text for a flag": (put(1, evaluates="false"), ["rows[1]: evaluates", "true or false", "str 'false'"]),
    "number for a flag": (put(2, completes_step=1), ["rows[2]: completes_step", "true or false", "int 1"]),
    "text for a number": (put(1, q="1.0"), ["rows[1]: q", "a number", "str '1.0'"]),
    "flag for a number": (put(1, a=True), ["rows[1]: a ", "a number", "bool True"]),
    "null": (put(3, in_scale=None), ["rows[3]: in_scale", "a number", "NoneType"]),
    "list for a number": (put(3, c=[1.0]), ["rows[3]: c ", "a number", "list"]),
    "huge": (put(3, p=10**400), ["rows[3]: p", "too large"]),
    "fraction for a step": (put(1, step=1.0), ["rows[1]: step", "an integer", "float 1.0"]),
    "flag for a slot": (put(1, store=True), ["rows[1]: store", "an integer", "bool True"]),
    "huge slot": (put(1, store=2**40), ["rows[1]: store", "too large"]),
    "key with a point": (put(1, b={"1.5": 1.0}), ["rows[1]: b", "'1.5'", "slots"]),
    "negative key": (put(1, e={"-1": 1.0}), ["rows[1]: e", "'-1'", "slots"]),
    "negative draw": (put(1, s={"-1": 1.0}), ["rows[1]: s", "'-1'", "draws"]),
    "key with a zero": (put(1, b={"1": 1.0, "01": 2.0}), ["rows[1]: b", "'01'"]),
    "key with a space": (put(1, r={" 1": 1.0}), ["rows[1]: r", "' 1'"]),
    "other digits": (put(1, r={"\u0661": 1.0}), ["rows[1]: r", "\u0661"]),
    "key in words": (put(1, r={"one": 1.0}), ["rows[1]: r", "'one'"]),
    "one key written twice": (put(1, b={"1": 1.0, 1: 2.0}), ["rows[1]: b", "twice"]),
    "huge key": (put(1, b={str(2**40): 1.0}), ["rows[1]: b", "too large"]),
    "text for a coefficient": (put(1, b={"0": "0.5"}), ["rows[1]: b['0']", "a number", "str '0.5'"]),
    "flag for a coefficient": (put(1, s={"3": False}), ["rows[1]: s['3']", "a number", "bool False"]),
    "list of terms": (put(1, b=[1.0]), ["rows[1]: b", "an object", "list"]),
    "unknown key": (put(1, stores=1), ["rows[1] has no stores", "store"]),
    "row no object": (lambda d: d["rows"].__setitem__(2, [1]), ["rows[2]", "an object", "list"]),
    "rows no list": (lambda d: d.update(rows={"0": {}}), ["rows", "a list", "dict"]),
    "times of text": (lambda d: d.update(times=["0", "1"]), ["times[0]", "a number", "str '0'"]),
    "times no list": (lambda d: d.update(times="01"), ["times", "a list", "str"]),
    "times turn": (lambda d: d.update(times=[1.0, 0.5, 0.2, 0.7, 0.0]), ["strictly", "times[3] = 0.7"]),
    "slots text": (lambda d: d.update(slots="1"), ["slots", "an integer", "str '1'"]),
    "slots fraction": (lambda d: d.update(slots=1.5), ["slots", "an integer", "float 1.5"]),
    "solver no text": (lambda d: d.update(solver=3), ["solver", "text", "int 3"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LOOSE)
def test_nothing_is_read_as_what_it_is_not(case):
    edit, words = LOOSE[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        pfc.Plan.from_dict(edited(edit))
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"step": 1', '"step": 0, "step": 1', ["rows[1]: step", "twice"]),
        ('"b": {"0": -0.125}', '"b": {"0": 0.5, "0": -0.125}', ["rows[1]: b['0']", "twice"]),
        ('"slots": 2', '"slots": 1, "slots": 2', ["slots", "twice"]),
        ('"q": 1.0', '"q": NaN', ["row 1: q is nan at step 1"]),
    ],
)
def test_a_key_twice_in_json(old, new, words):
    text = json.dumps(edited(lambda d: d["rows"][1].update(q=1.0)))
    assert text.count(old) >= 1, text
    with pytest.raises((TypeError, ValueError)) as caught:
        pfc.Plan.from_json(text.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value), str(caught.value)


def set_infinite(name):
    def edit(d):
        row = d["rows"][2]
        if name in ("b", "e"):
            row[name] = {"1" if "1" in row.get("b", {}) else "0": float("-inf")}
        elif name in ("s", "r"):
            row[name] = {"7": float("nan")}
        else:
            row[name] = float("inf")

    return edit


@pytest.mark.parametrize(
    ("name", "says"),
    [(name, f"row 2: {name} is inf at step 2") for name in ("in_scale", "p", "q", "a", "c")]
    + [("b_new", r"row 2: b_new \(of the row's own prediction\) is inf"), ("e_new", "row 2: e_new .* is inf at step 2")]
    + [("b", r"row 2: b of slot \d is -inf at step 2 \(t = 0.5\)"), ("e", r"row 2: e of slot \d is -inf at step 2")]
    + [("s", r"row 2: s of draw 7 is nan at step 2"), ("r", r"row 2: r of draw 7 is nan at step 2")],
)  # fmt: skip
def test_a_coefficient_that_is_not_finite_is_named(name, says):
    with pytest.raises(ValueError, match=says):
        pfc.Plan.from_dict(edited(set_infinite(name)))


@pytest.mark.parametrize("name", sorted(catalogue.EVERY))
def test_too_few_slots_for_the_order(name):
    """A plan whose slots are fewer than its rows read is refused by row, whatever solver wrote it."""
    solver, options = catalogue.EVERY[name]
    description = pfc.plan(solver, grid=np.linspace(0.1, 0.9, 9), **options).to_dict()
    for slots in range(description["slots"]):
        with pytest.raises(ValueError, match=rf"row \d+: (store is|slot) \d.*the plan has {slots} slots"):
            pfc.Plan.from_dict(description | {"slots": slots})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_text_that_is_no_plan(text):
    with pytest.raises(ValueError, match="text"):
        pfc.Plan.from_json(text)
