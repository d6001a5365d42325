"""The networks of the demo and how they are trained: what suits 1,442 images of 8x8 pixels and two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import models
from ..training import TrainConfig
from .digits import CLASSES


@dataclass(frozen=True)
class Size:
    """Width and depth of a network: of a DiT its tokens' width and its blocks, of a U-Net the channels of its first level
    (the second has twice as many) and the stages of a level."""

    width: int
    depth: int


#: What ``new_model`` can make, and how large without being told.
SIZES = {"dit": Size(96, 4), "unet": Size(32, 1)}


def new_model(
    seed: int = 0, *, kind: str = "dit", width: int | None = None, depth: int | None = None
) -> models.DiT | models.UNet:
    """A network for the digits, 0.7 or 0.8 million parameters: a DiT of 16 tokens, or a U-Net of two levels.

    Args:
        seed: of the weights; torch's generator is left as it was.
        kind: "dit" or "unet".
        width, depth: see ``Size``; those of ``SIZES`` where None.

    Raises:
        ValueError: for another kind, or a size that the network refuses.
    """
    if kind not in SIZES:
        raise ValueError(f"model must be one of {sorted(SIZES)}; got {kind!r}")
    width = SIZES[kind].width if width is None else width
    depth = SIZES[kind].depth if depth is None else depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "dit":
            return models.DiT(
                size=8, channels=1, patch=2, width=width, depth=depth, heads=4, num_classes=CLASSES
            )
        return models.UNet(
            8,
            1,
            width,
            multipliers=(1, 2),
            blocks=depth,
            attention=(2,),
            head_channels=0,
            num_classes=CLASSES,
        )


def described(model: models.Model) -> dict[str, Any]:
    """``{"model": kind, "width": ..., "depth": ...}`` of a network that ``new_model`` made, nothing of another."""
    if isinstance(model, models.DiT):
        return {"model": "dit", "width": model.config["width"], "depth": model.config["depth"]}
    if isinstance(model, models.UNet):
        return {"model": "unet", "width": model.config["width"], "depth": model.config["blocks"]}
    return {}


def train_config(objective: str, seed: int = 0) -> TrainConfig:
    """Settings that suit the digits; the same for both objectives."""
    return TrainConfig(objective=objective, batch_size=64, lr=2e-3, warmup=100, ema_decay=0.995, seed=seed)
