"""docs/prepared-fields.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import models

PAGE = Path(__file__).parents[1] / "docs" / "prepared-fields.md"


def test_every_example() -> None:
    torch.manual_seed(0)
    names = {"pfc": pfc, "torch": torch, "models": models}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs"):
        for block in blocks:
            exec(block, names)
    assert names["samples"].shape == (4, 1, 8, 8)
    assert names["buffer"].shape == (1, 50, 32) and names["buffer"].isfinite().all()


def test_every_operator_is_on_the_page() -> None:
    page = PAGE.read_text()
    small = {"width": 32, "multipliers": (1,), "attention": (1,), "head_channels": 0}
    for model in (
        models.DiT(),
        models.MMDiT(),
        models.MMDiT(single=1),
        models.UNet(**small),
        models.ActionExpert(),
    ):
        field = pfc.prepare(model)
        assert f"`models.{type(model).__name__}`" in page
        assert all(f"`{name}`" in page for name in field.net.packed.operators)


def test_the_readme_links_to_it() -> None:
    assert "docs/prepared-fields.md" in (PAGE.parents[1] / "README.md").read_text()
