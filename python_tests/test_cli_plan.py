"""`pyflowcore plan`: the table that is printed is the plan's, and every mistake is one line and status 2."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
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


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_the_table_has_grid_lambda_and_every_coefficient(capsys, path):
    """Read back from the text: t, lambda, and each coefficient beside what it multiplies."""
    plan = pfc.plan("unipc", 10, path=path)
    head, *lines = output(capsys, "unipc", "--steps", "10", "--path", path).splitlines()
    assert "10 steps, 10 evaluations" in head
    assert head.endswith("t from 0 to 1")
    alpha, sigma, _, _ = plan.path.coefficients([row.t for row in plan.rows])
    with np.errstate(divide="ignore"):
        levels = np.log(alpha) - np.log(sigma)
    assert len(lines) == len(plan.rows)
    for i, (line, row) in enumerate(zip(lines, plan.rows, strict=True)):
        facts = re.match(r" *(\d+)  step (\d+) +t = (\S+) +lambda = (\S+) +(D = .*?); x <- (.*)$", line)
        assert (int(facts[1]), int(facts[2])) == (i, row.step)
        assert float(facts[3]) == pytest.approx(row.t, abs=1e-6)
        assert float(facts[4]) == pytest.approx(levels[i], rel=1e-3)
        assert len(line) <= 160
        read = {}
        for sign, number, name in re.findall(r"(^|[+-]) ?(-?[\d.e-]*) ?(x|D\d*)(?= |$)", facts[6]):
            read[name] = (-1.0 if sign == "-" else 1.0) * float(number or 1.0)
        wanted = {"x": row.a, "D": row.b_new} | {f"D{term.slot}": term.coefficient for term in row.b}
        assert read == pytest.approx({k: v for k, v in wanted.items() if v}, rel=1e-5)


def test_a_plot(capsys, tmp_path):
    matplotlib.use("Agg")
    for name in ("plan.png", "plan.svg"):
        assert (
            output(capsys, "unipc", "--steps", "10", "--plot", str(tmp_path / name))
            == f"{pfc.plan('unipc', 10)}\n"
        )
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "plan.svg").read_bytes()


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
        (["unipc", "--steps", "3", "--plot", "plan.doc"], ["--plot", "png", "plan.doc"]),
        (["unipc", "--steps", "3", "--plot", "no/such/folder/plan.png"], ["folder", "no/such"]),
    ],
)
def test_refused(capsys, argv, words):
    assert cli.main(["plan", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyflowcore plan: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
