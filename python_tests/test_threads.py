"""Eight threads that share one Sampler get what one thread gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import pyflowcore as pfc
from reference import stochastic
from reference.torch_fields import drift

GRID = torch.linspace(0.1, 0.9, 9).double().numpy()
PLANS = {"heun": pfc.plan("heun", grid=GRID), "ab2": pfc.plan("ab2", grid=GRID)}
PLANS["churn"] = pfc.Plan.from_dict(stochastic.describe("churn", GRID))


@pytest.mark.parametrize("name", PLANS)
def test_eight_threads_share_a_sampler(name):
    sampler = pfc.Sampler(PLANS[name], pfc.CFG(2.0))
    start = Barrier(8)

    def work(worker, wait=True):
        seeds = range(10 * worker, 10 * worker + 3 + worker)
        y = torch.arange(float(len(seeds)))[:, None]
        if wait:
            start.wait()
        return [
            sampler(
                lambda x, t, y: drift(x, t) + y, x0=pfc.randn(seeds, (1025,)), seeds=seeds, cond={"y": y},
                uncond={"y": torch.zeros(1)},
            )
            for _ in range(5)
        ]  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for worker, samples in enumerate(found):
        alone = work(worker, wait=False)[0]
        assert all(torch.equal(sample, alone) for sample in samples)
