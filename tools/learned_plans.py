"""Writes the figures of docs/learned-plans.md: learned plans against the classical solvers of the same evaluations.

    python tools/learned_plans.py            about five minutes on one core

Errors are root mean squares over new noise, against 1000 steps of order 4, in float64. The fields are the exact ones of two
mixtures of Gaussians in the plane.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python_tests"))

import pyflowcore as pfc  # noqa: E402
from reference.torch_fields import five, ring  # noqa: E402

PAGE = ROOT / "docs" / "learned-plans.md"
EVALUATIONS = (4, 6, 8, 10)
FIELDS = {"eight on a circle": ring(), "five of unequal weights": five()}


def classical(nfe: int) -> list[pfc.Plan]:
    """Every deterministic solver, of each order, with at most this many evaluations on a uniform grid."""
    plans = []
    for name in pfc.solvers():
        for order in (None, 1, 2, 3, 4):
            try:
                plan = pfc.plan(name, nfe=nfe, order=order)
            except ValueError:
                continue
            if plan.draws == 0:
                plans.append(plan)
    return plans


def rows(name: str) -> list[str]:
    field = FIELDS[name].of("velocity")
    x0 = pfc.randn(range(4096), (2,), dtype=torch.float64)
    wanted = pfc.Sampler(pfc.plan("ab4", 1000, start="single"))(field, x0=x0)

    def error(plan: pfc.Plan) -> float:
        return float((pfc.Sampler(plan)(field, x0=x0) - wanted).square().mean().sqrt())

    lines = []
    for nfe in EVALUATIONS:
        fit = pfc.fit_plan(
            field,
            nfe=nfe,
            shape=(2,),
            samples=4096,
            validation=1024,
            dtype=torch.float64,
        )
        best, solver = min((error(plan), plan.solver) for plan in classical(nfe))
        learned, euler = error(fit.plan), error(pfc.plan("euler", nfe))
        lines.append(
            f"| {name} | {nfe} | {euler:.2e} | {best:.2e} ({solver}) | {error(fit.init):.2e} ({fit.init.solver}) | "
            f"{learned:.2e} | {best / learned:.1f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    torch.set_num_threads(1)
    table = [
        "| mixture | evaluations | Euler | best classical | start of the fit | learned | gain |",
        "|---|---|---|---|---|---|---|",
        *(line for name in FIELDS for line in rows(name)),
    ]
    begin, end = "<!-- figures -->", "<!-- end of figures -->"
    text = PAGE.read_text()
    filled = re.sub(f"{begin}.*{end}", "\n".join([begin, *table, end]), text, flags=re.DOTALL)
    PAGE.write_text(filled)


if __name__ == "__main__":
    main()
