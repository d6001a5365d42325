"""docs/fields.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import pyflowcore as pfc

PAGE = Path(__file__).parents[1] / "docs" / "fields.md"


def integer_net(x, k):
    assert k.dtype == torch.int64 and set(k.tolist()) <= {999, 799, 599, 399, 199}
    return torch.tanh(x)


def test_every_example():
    names = {
        "pfc": pfc, "torch": torch, "integer_net": integer_net,
        "net": lambda x, t: 0.1 * torch.tanh(x), "denoiser": lambda x, sigma: torch.tanh(x),
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 11
    for block in blocks[1:]:  # the first is the pattern of all others
        names.pop("images", None)
        exec(block, names)
        if "images" in names:
            assert names["images"].shape == (2, 4, 8, 8) and names["images"].isfinite().all()
        elif "field" in block:
            names["field"](torch.ones(2, 3), torch.tensor([0.25, 0.5]))
        else:
            names.get("path", names["plan"])


def test_the_readme_links_to_it():
    assert "docs/fields.md" in (PAGE.parents[1] / "README.md").read_text()
