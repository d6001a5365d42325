"""The benchmarks of small fields: the same field in every arm, and arms that agree. Nothing is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed pyflowcore goes before the source folder

from benchmarks import fields, registry, trajectories
from benchmarks.options import Options


def test_fields_are_the_same_each_time_and_take_times_in_every_form() -> None:
    field = fields.velocity(3, 16, dim=4)
    x = torch.randn(5, 4)
    for t in (torch.tensor(0.3), torch.tensor([0.3]), torch.full((5,), 0.3)):
        assert torch.equal(field(x, t), fields.velocity(3, 16, dim=4)(x, torch.full((5,), 0.3)))
    weights = sum(weight.numel() for weight, _ in field.layers())
    assert fields.evaluation_operations(3, 16, dim=4) == 2 * weights


def test_the_eager_loop_is_eulers() -> None:
    field = fields.velocity(2, 16)
    x0 = torch.randn(3, 2)
    x = x0.double().numpy()
    layers = [(w.double().numpy(), b.double().numpy()) for w, b in field.layers()]
    for i in range(10):
        h = numpy.concatenate([x, numpy.full((3, 1), i / 10)], axis=1)
        for number, (weight, bias) in enumerate(layers):
            h = h @ weight.T + bias
            if number < len(layers) - 1:
                h = h / (1 + numpy.exp(-h))
        x = x + h / 10
    found = trajectories.stepping(trajectories.euler_step(field, 10), x0, 10)()
    numpy.testing.assert_allclose(found.double().numpy(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["engine", "solve", "log_prob"])
def test_sizes_are_batches(name: str) -> None:
    cases = registry.load()[name].cases(Options(threads=1, sizes=(7,)))
    assert {case.params["batch"] for case in cases} <= {7, 256}


@pytest.mark.parametrize(
    "name",
    [
        "3x64 SiLU, float32, batch 3, 50 Euler steps",
        "3x64 SiLU, batch 3,",
        "overhead per evaluation",
        "8 dimensions",
    ],
)
def test_arms_of_small_fields_agree(name: str) -> None:
    """The check that a run makes before it times anything, on a small batch."""
    options = Options(threads=torch.get_num_threads(), sizes=(3,), without=("torch.compile",))
    cases = [
        case
        for entry in ("engine", "solve", "log_prob")
        for case in registry.load()[entry].cases(options)
        if name in case.name
    ]
    assert len(cases) == 1
    with torch.no_grad():
        built = cases[0].build()
        assert built.check is not None
        built.check()
    assert [arm for arm in built.arms if arm.role == "candidate"]
    assert all(reason for reason in built.skipped.values())


# ------------------------------------------------------------ verdicts
