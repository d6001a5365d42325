"""The examples of docs/running.md and docs/guidance.md run as they stand, with stand-ins for what the reader has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pyflowcore as pfc

DOCS = Path(__file__).parents[1] / "docs"


def net(x, t, y=None):
    return 0.1 * torch.tanh(x)


@pytest.mark.filterwarnings("ignore::pyflowcore.PyflowcoreWarning")
@pytest.mark.parametrize("page, count", [("running.md", 8), ("guidance.md", 1)])
def test_every_example(page, count):
    batch = 8
    names = {
        "pfc": pfc, "torch": torch, "net": net, "field": pfc.Field(net), "weak_field": pfc.Field(net),
        "plan": pfc.plan("dpmpp_2m", 2), "shape": (4, 64, 64), "seeds": range(batch), "more": range(8, 8 + batch),
        "labels": torch.arange(batch), "other": torch.ones(batch).long(), "null": torch.tensor(0), "first": torch.arange(batch),
        "second": torch.ones(batch).long(), "noise": torch.randn(batch, 4, 64, 64), "image": torch.randn(batch, 4, 64, 64),
        "keep": torch.ones(1, 1, 64, 64),
        "theta": torch.randn(batch, 3),
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(blocks) == count
    for block in blocks:
        names.pop("x1", None)
        exec(block, names)
        if "x1" in names:
            assert names["x1"].shape == (batch, 4, 64, 64) and names["x1"].isfinite().all()
