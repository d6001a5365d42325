"""docs/models.md runs as it stands, and its table of sizes is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pyflowcore import models
from pyflowcore.models.count import count

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
TRANSFORMER = re.compile(r"^\| (\S+) \| (\d+), (\d+), (\d+) \| ([\d,]+) \| ([\d.]+) G \|", re.MULTILINE)


def test_every_example(capsys):
    torch.manual_seed(0)
    names = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    assert names["images"].shape == (4, 1, 8, 8)
    assert names["again"].config["width"] == 96
    assert names["drawn"].shape == (2, 1, 8, 8) and names["chunks"].shape == (2, 16, 2)
    assert "674.8 M parameters, 118.64 G multiply-adds" in capsys.readouterr().out


ROWS = TRANSFORMER.findall(PAGE.read_text())


def test_the_table_of_transformers_is_found():
    assert len(ROWS) == 11


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_table_of_transformers(row):
    name, width, depth, heads, learned, multiply_adds = row
    with torch.device("meta"):
        net = models.named(name)
        found = count(net, torch.empty(1, *net.shape), torch.empty(1), torch.empty(1, dtype=torch.int64))
    assert [str(net.config[key]) for key in ("width", "depth", "heads")] == [width, depth, heads]
    assert f"{found.parameters:,}" == learned
    assert f"{found.multiply_adds / 1e9:.2f}" == multiply_adds


NAMED = re.compile(r"^\| (SD3\S*|FLUX\S*|pi0\S*) \|.*?\| ([\d,]+) \|", re.MULTILINE)


def test_the_tables_of_two_streams_and_of_experts():
    rows = NAMED.findall(PAGE.read_text())
    assert len(rows) == 6
    for name, learned in rows:
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in models.named(name).parameters())
        assert f"{found:,}" == learned, name


def test_the_readme_links_to_it():
    assert "docs/models.md" in (PAGE.parents[1] / "README.md").read_text()
