"""The examples of docs/likelihood.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import pyflowcore as pfc

PAGE = Path(__file__).parents[1] / "docs" / "likelihood.md"


def test_every_example():
    names = {
        "pfc": pfc, "torch": torch, "x1": torch.randn(16, 8), "field": pfc.Field(lambda x, t: torch.tanh(x) * t[:, None])
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    shown = 0
    for block in blocks:
        names.pop("value", None)
        exec(block, names)
        if "value" in names:
            assert names["value"].shape == (16,) and names["value"].isfinite().all()
        if printed := re.search(r"print\(found.engine\)  # (.*)\n", block):
            assert names["found"].engine == printed.group(1)
            shown += 1
    assert shown == 2
    assert names["x1"].grad.isfinite().all()
