"""docs/mixture.md is generated (tools/mixture_table.py): what it says of some solvers is what they do now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import pyflowcore as pfc
from reference import fields, mixture

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("`euler`", "`ab3`", "`unipc` 3 bh2", "`heun`", "`dopri8`")
NFE = 10


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("mixture_table", ROOT / "tools" / "mixture_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page():
    """{(heading, solver): cells}."""
    lines, heading = {}, ""
    for line in (ROOT / "docs" / "mixture.md").read_text().splitlines():
        heading = line[3:] if line.startswith("## ") else heading
        if line.startswith("| `"):
            solver, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert (heading, solver) not in lines
            lines[heading, solver] = cells
    return lines


def test_the_field_is_the_mixtures():
    """With all means on the first axis the second coordinate separates: what is left is a mixture in one dimension."""
    flat = mixture.Problem(2)
    flat.means = np.stack([np.linspace(-2.0, 2.0, mixture.COMPONENTS), np.zeros(mixture.COMPONENTS)], axis=1)
    line = np.linspace(-3.0, 3.0, 41)
    for t in (0.0, 0.3, 0.9):
        variance = t**2 * mixture.DEVIATIONS**2 + (1.0 - t) ** 2
        weights = mixture.WEIGHTS / np.sqrt(variance)  # with the density of the second coordinate at 0
        expected = fields.Mixture("linear", flat.means[:, 0], mixture.DEVIATIONS, weights).of("velocity")
        found = flat.velocity(np.stack([line, np.zeros_like(line)], axis=1), t)
        np.testing.assert_allclose(found[:, 0], expected(line, t), rtol=1e-12, atol=1e-12)


def test_every_solver_and_grid_has_its_line(tool, page):
    for dimensions in mixture.DIMENSIONS:
        for grid in tool.GRIDS:
            found = {solver for heading, solver in page if heading == f"{dimensions} dimensions, {grid}"}
            assert found == {tool.name_of(*case) for case in tool.solvers().values()}


@pytest.mark.parametrize("dimensions", mixture.DIMENSIONS)
def test_the_page_is_what_the_solvers_do(tool, page, dimensions):
    by_name = {tool.name_of(*case): case for case in tool.solvers().values()}
    for grid in tool.GRIDS:
        for name in CHECKED:
            cells = page[f"{dimensions} dimensions, {grid}", name]
            written = cells[tool.NFES.index(NFE)]
            found = tool.measure(dimensions, *by_name[name], grid, NFE)
            if found is None:
                assert written == "–"
                continue
            median, rms, switches = map(float, written.split(" / "))
            # Two digits are written; one sample more or less may switch on another machine.
            np.testing.assert_allclose([median, rms], found[:2], rtol=0.06)
            assert abs(switches - 100.0 * found[2]) < 0.16


@pytest.mark.parametrize("dimensions", mixture.DIMENSIONS)
def test_ten_evaluations_beat_fifty_of_euler(tool, dimensions):
    """Adams-Bashforth of order 3 on the beta grid, on all three measures, against Euler on each of the page's grids."""
    best = tool.measure(dimensions, "ab3", {}, "beta()", 10)
    assert pfc.plan("ab3", nfe=10, grid=tool.GRIDS["beta()"]).nfe == 10
    for grid in tool.GRIDS:
        euler = tool.measure(dimensions, "euler", {}, grid, 50)
        assert all(mine < theirs for mine, theirs in zip(best, euler, strict=True)), (grid, best, euler)


def test_distances_between_distributions_are_told(tool):
    """Exact draws are nearest; a shift of them by 0.1 is seen as what it is."""
    problem = mixture.problem(2)
    draws = problem.exact_draws()
    floor = problem.distance(draws)
    assert floor < 0.03
    shift = np.array([0.1, 0.0])
    moved = [abs(line @ shift) for line, _, _ in problem._projections]
    assert abs(problem.distance(draws + shift) - np.mean(moved)) < floor
