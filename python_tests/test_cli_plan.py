"""`pyflowcore plan`: the table that is printed is the plan's, and every mistake is one line and status 2."""

from __future__ import annotations

import pytest

import pyflowcore as pfc
from pyflowcore import cli


def output(capsys, *argv):
    assert cli.main(["plan", *argv]) == 0
    return capsys.readouterr().out


def test_the_table(capsys):
    assert output(capsys, "unipc", "--steps", "10") == f"{pfc.plan('unipc', 10)}\n"
    wanted = pfc.plan(
        "deis", nfe=9, order=2, variant="logrho", start="single", path="vp", grid=pfc.grids.shifted(2.0)
    )
    argv = ["deis", "--nfe", "9", "--order", "2", "--variant", "logrho", "--start", "single", "--path", "vp"]
    assert output(capsys, *argv, "--shift", "2") == f"{wanted}\n"
    churned = output(capsys, "edm_heun", "--steps", "4", "--s-churn", "2", "--s-max", "3")
    assert churned == f"{pfc.plan('edm_heun', 4, s_churn=2, s_max=3)}\n"


def test_json(capsys):
    text = output(capsys, "euler_maruyama", "--steps", "3", "--diffusion", "sine", "--json")
    assert pfc.Plan.from_json(text) == pfc.plan("euler_maruyama", 3, diffusion="sine")


def test_without_a_solver_it_lists_them(capsys):
    lines = output(capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(pfc.solvers())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["unipc"], ["--steps", "--nfe"]),
        (["unpc", "--steps", "3"], ["'unpc'", "unipc"]),
        (["heun", "--steps", "3", "--order", "2"], ["order", "'heun'"]),
        (["unipc", "--steps", "0"], ["steps", "0"]),
        (["unipc", "--steps", "3", "--path", "cosine"], ["path", "'cosine'"]),
    ],
)
def test_refused(capsys, argv, words):
    assert cli.main(["plan", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyflowcore plan: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
