"""A batch split over two processes has the bits of the whole batch, for every solver: one pair of processes for all of them.

Run as a program it is one of the two: `python test_two_processes.py FIRST LAST FILE` samples those seeds into FILE.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import catalogue
from reference.torch_fields import drift

COUNT, SPLIT = 7, 3
SHAPE = (3, 347)


def conditional(x, t, y):
    return drift(x, t) + y.reshape(-1, 1, 1)


def samples(first, last):
    """What every solver makes of the seeds from first to last, forwards; the deterministic ones backwards as well."""
    seeds, found = list(range(first, last)), {}
    grid = [0.02, 0.1, 0.3, 0.35, 0.7, 1.0]
    x0 = pfc.randn(seeds, SHAPE, stream=5)
    for name, (solver, options) in catalogue.EVERY.items():
        found[name] = pfc.Sampler(pfc.plan(solver, grid=grid, **options))(drift, x0=x0, seeds=seeds)
        if name not in catalogue.STOCHASTIC:
            back = pfc.plan(solver, grid=grid[::-1], **options)
            found[f"{name}, backwards"] = pfc.Sampler(back)(drift, x0=x0)
    whole = pfc.plan("stochastic_heun", 5)
    found["from noise"] = pfc.Sampler(whole)(drift, shape=SHAPE, seeds=seeds)
    scale = torch.linspace(1.0, 4.0, COUNT)[first:last]
    found["guided"] = pfc.Sampler(whole, pfc.CFG(2.0, (0.1, 0.8)))(
        conditional, shape=SHAPE, seeds=seeds, cond={"y": torch.arange(COUNT)[first:last] / 7.0},
        uncond={"y": torch.tensor(0.1)}, guidance_scale=scale,
    )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder, here = tmp_path_factory.mktemp("halves"), Path(__file__)
    path = os.pathsep.join(
        [str(here.parent), str(here.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    running = [
        subprocess.Popen(
            [sys.executable, str(here), str(first), str(last), str(folder / f"{first}.npz")],
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
        )
        for first, last in ((0, SPLIT), (SPLIT, COUNT))
    ]  # fmt: skip
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [np.load(folder / f"{first}.npz") for first in (0, SPLIT)]


def test_two_halves_are_the_whole(halves):
    whole = samples(0, COUNT)
    assert {case[0] for case in catalogue.EVERY.values()} == set(pfc.solvers())
    for name, found in whole.items():
        split = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(split.view(np.int32), found.numpy().view(np.int32), err_msg=name)
        assert len(np.unique(found[:, 0, 0])) == COUNT, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(
        sys.argv[3], **{name: x.numpy() for name, x in samples(int(sys.argv[1]), int(sys.argv[2])).items()}
    )
