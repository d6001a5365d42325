"""Published sizes by name, and how large they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyflowcore import models
from pyflowcore.models.count import count, parameters


def counted(name, **changes):
    with torch.device("meta"):
        model = models.named(name, **changes)
        return count(model, torch.empty(1, *model.shape), torch.empty(1), torch.empty(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("size", "millions", "gflops"),
    [
        # Ma et al. 2024, table 1 and Peebles & Xie 2023, table 4 (256 x 256); XL/4 as the authors give it on GitHub.
        ("S/2", 33, "6.06"),
        ("B/2", 130, "23.01"),
        ("L/2", 458, "80.71"),
        ("XL/2", 675, "118.64"),
        ("XL/4", 675, "29.05"),
    ],
)
def test_sit_is_as_large_as_published(size, millions, gflops):
    found = counted(f"SiT-{size}")
    assert round(found.parameters / 1e6) == millions
    assert f"{found.multiply_adds / 1e9:.2f}" == gflops


def test_dit_is_the_network_of_sit():
    for size in ("S", "B", "L", "XL"):
        for patch in (2, 4, 8):
            assert models.SIZES[f"DiT-{size}/{patch}"] == models.SIZES[f"SiT-{size}/{patch}"]


@pytest.mark.parametrize(("size", "millions"), [("B/1", 130), ("L/1", 458), ("XL/1", 675)])
def test_lightning_dit_is_as_large_as_published(size, millions):
    with torch.device("meta"):
        assert round(parameters(models.named(f"LightningDiT-{size}")) / 1e6) == millions


def test_dit_at_512():
    assert f"{counted('DiT-XL/2', size=64).multiply_adds / 1e9:.1f}" == "524.6"


@pytest.mark.parametrize("name", [name for name, (kind, _) in models.SIZES.items() if kind == "DiT"])
def test_every_name_builds_with_its_patch_and_can_be_built_again(name):
    with torch.device("meta"):
        model = models.named(name, depth=1)
        assert name.endswith(f"/{model.patch}")
        assert models.build("DiT", model.config).config == model.config
        assert model(torch.empty(2, *model.shape), torch.empty(2)).shape == (2, *model.shape)


def test_counts_against_formulas():
    """A layer at a time, as the papers add up: 12 width^2 + 2 tokens * width a token and block, and the small rest."""
    found = counted("SiT-S/2")
    width, depth, tokens = 384, 12, 256
    token = 12 * width**2 + 2 * tokens * width
    rest = tokens * 16 * width + 256 * width + width**2 + 2 * width**2 + tokens * width * 32
    assert found.products == depth * (tokens * token + 6 * width**2) + rest
    assert found.normed == (2 * depth + 1) * tokens * width
    block = 4 * width**2 + 8 * width**2 + 6 * width**2 + (3 + 1 + 4 + 1 + 6) * width
    head = 2 * width**2 + 2 * width + width * 32 + 32
    assert (
        found.parameters
        == depth * block + head + 17 * width + 257 * width + (width + 1) * width + 1001 * width
    )


def test_counting_grows_with_the_batch_and_sees_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, device="meta"), nn.GroupNorm(2, 8, device="meta"))
    found = count(model, torch.empty(5, 3, 4, 4, device="meta"))
    assert found.products == 5 * 4 * 4 * 8 * 3 * 9
    assert found.normed == 5 * 4 * 4 * 8
    assert found.multiply_adds == found.products + found.normed
    assert found.parameters == 8 * 27 + 8 + 16


def test_counting_leaves_no_hooks_behind():
    norm = nn.LayerNorm(4)
    with pytest.raises(RuntimeError):
        count(norm, torch.zeros(2, 3))
    assert not norm._forward_hooks
    count(norm, torch.zeros(2, 4))
    assert not norm._forward_hooks


def test_counting_on_the_cpu_agrees_with_meta():
    changes = {"size": 8, "width": 16, "depth": 2, "heads": 2}
    model = models.named("LightningDiT-S/2", **changes)
    with torch.no_grad():
        here = count(model, torch.zeros(1, *model.shape), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert here == counted("LightningDiT-S/2", **changes)


def test_changes_replace_the_published_arguments():
    with torch.device("meta"):
        model = models.named("LightningDiT-B/1", qk_norm="rms", num_classes=0, cond_dim=7)
    assert model.config["qk_norm"] == "rms"
    assert model.null_class is None
    assert model.config["width"] == 768


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.named("SiT-H/2"), "name must be one of"),
        (lambda: models.named("SiT-S/2", widht=3), "config does not fit DiT"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
