"""docs/solvers.md is generated (tools/solver_table.py): what it says of each solver is what the plans say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from reference import catalogue, paths

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("solver_table", ROOT / "tools" / "solver_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_solver_has_its_line(tool):
    lines = {}
    for line in (ROOT / "docs" / "solvers.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            lines[cells[0], cells[1]] = cells[2:]
    wanted = {**catalogue.DETERMINISTIC, **{f"{n}-ramp": c for n, c in catalogue.RAMPED.items()}}
    for solver, options, order in wanted.values():
        evaluations, slots, *slopes = lines.pop((f"`{solver}`", tool.options_of(options)))
        assert (int(evaluations), int(slots)) == tool.cost(solver, options), solver
        assert len(slopes) == len(paths.EVERY)
        assert min(map(float, slopes)) >= order - 0.3, (solver, options)
    for solver, options in catalogue.STOCHASTIC.values():
        evaluations, slots, *_ = lines.pop((f"`{solver}`", tool.options_of(options)))
        assert (int(evaluations), int(slots)) == tool.cost(solver, options), solver
    assert not lines
