"""docs/fused-fields.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pyflowcore as pfc

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parents[1] / "docs" / "fused-fields.md"


def test_every_example():
    torch.manual_seed(0)
    names = {"pfc": pfc, "torch": torch, "__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    assert names["samples"].shape == (1000, 2) and names["thetas"].shape == (100, 2)
    assert names["digits"].shape == (3, 2)
    assert not names["field"].stale()


def test_the_refused_kinds_are_the_documented_ones():
    """Every activation of the engines is in the table."""
    from pyflowcore.network import ACTIVATIONS

    table = PAGE.read_text().lower().replace(" ", "_")
    assert all(name in table or name in ("identity", "gelu_tanh") for name in ACTIVATIONS)


def test_the_readme_links_to_it():
    assert "docs/fused-fields.md" in (PAGE.parents[1] / "README.md").read_text()
