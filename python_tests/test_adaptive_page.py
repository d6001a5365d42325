"""The examples of docs/adaptive.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pyflowcore as pfc

PAGE = Path(__file__).parents[1] / "docs" / "adaptive.md"


@pytest.mark.filterwarnings("ignore::pyflowcore.PyflowcoreWarning")
def test_every_example():
    linear = torch.nn.Linear
    names = {
        "pfc": pfc, "torch": torch, "field": lambda x, t, y=None: torch.tanh(3 * x) * t[:, None], "x0": torch.randn(8, 4),
        "labels": torch.arange(8), "points": torch.randn(100, 2),
        "small_net": torch.nn.Sequential(linear(3, 16), torch.nn.SiLU(), linear(16, 2)),
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    assert names["start"].grad.isfinite().all()
