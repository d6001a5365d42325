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
        (lambda d: d["rows"][1].update(q=float("inf")), "row 1: a coefficient is not finite"),
        (lambda d: d["rows"][1].update(b={"9": 1.0}), "row 1: slot 9"),
        (lambda d: d["rows"][0].update(b={"1": 1.0}), "row 0: slot 1 is read before"),
        (lambda d: d["rows"][1].update(store=0), "row 1: slot 0 is read and written"),
        (lambda d: d["rows"][1].update(s={"-1": 1.0}), "not in 0 to"),
        (lambda d: d["rows"][1].update(s={str(n): 1.0 for n in range(5)}), "more than 4 different draws"),
        (lambda d: d["rows"][1].update(evaluates=False), "row 1: a row without an evaluation"),
        (lambda d: d["rows"][1].update(a=0.5, a_minus_1=0.5), "they disagree"),
    ],
)
def test_refusals(edit, says):
    with pytest.raises(ValueError, match=says):
        pfc.Plan.from_dict(edited(edit))


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_text_that_is_no_plan(text):
    with pytest.raises(ValueError, match="text"):
        pfc.Plan.from_json(text)
