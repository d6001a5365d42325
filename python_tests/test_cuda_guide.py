"""guide_ and combine_mixed_ on CUDA against CPU, to the bit. The kernels' bodies are in ``test_cuda_guide_bodies.py``."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_cases import DEVICE, DTYPES, STATES, same_bits
from test_ops_guide import COPY, RULES, inputs

import pyflowcore as pfc

pytestmark = pytest.mark.gpu


def run(given: dict, device: torch.device) -> tuple[torch.Tensor, ...]:
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) and k != "rules" else v for k, v in given.items()}
    x = moved["x"].clone()
    m = None if moved["m"] is None else moved["m"].clone()
    out = moved["branches"].flatten(0, 1)
    mix = pfc.ops.guide_(x, given["rules"], 0, out=out, guidance=moved["scales"][None], m=m)
    pfc.ops.combine_mixed_(x, COPY, 0, out=out, mix=mix, m=m)
    return (x, mix) if m is None else (x, mix, m)


@pytest.mark.sanitize
@pytest.mark.parametrize("name", RULES)
def test_guide_has_the_bits_of_the_cpu(name: str) -> None:
    conditions = (1,) if RULES[name].get("beta") else (1, 3)
    for sample, count in itertools.product((1, 7, 1024, 1028, 3001), conditions):
        for state, out in itertools.product(STATES, DTYPES):
            given = inputs(3, sample, RULES[name], state, out, count)
            for cpu, cuda in zip(run(given, torch.device("cpu")), run(given, DEVICE), strict=True):
                same_bits(cpu, cuda, (name, sample, count, state, out))


def test_guide_of_large_samples() -> None:
    for sample in (70_001, 1 << 20):
        given = inputs(2, sample, RULES["all"])
        for cpu, cuda in zip(run(given, torch.device("cpu")), run(given, DEVICE), strict=True):
            same_bits(cpu, cuda, sample)
