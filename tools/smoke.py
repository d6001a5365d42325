"""The installed package, used for a few lines: what CI runs in a clean environment, away from the checkout.

A straight flow to a point has the exact solution x(1) = point, which Euler reaches in any number of steps.
"""

from __future__ import annotations

import sys

import torch

import pyflowcore as pfc


def main() -> int:
    point = torch.tensor([1.0, -2.0, 3.0])

    def towards(x: torch.Tensor, t: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
        return (point - x) / (1 - t).reshape(-1, 1)

    sampler = pfc.Sampler(pfc.plan("euler", steps=8))
    samples = sampler(towards, shape=(3,), seeds=range(4))
    alone = sampler(towards, shape=(3,), seeds=[2])
    print(pfc.info())
    if not torch.allclose(samples, point.expand(4, 3), atol=1e-5):
        print(f"smoke: Euler ended at {samples.tolist()}, not at {point.tolist()}")
        return 1
    if not torch.equal(samples[2:3], alone):
        print("smoke: a sample is not the same alone as in a batch")
        return 1
    print(f"smoke: {pfc.__file__} samples right with torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
