"""The network of the demo and how it is trained: what suits 1,442 images of 8x8 pixels and two CPU cores."""

from __future__ import annotations

import torch

from .. import models
from ..training import TrainConfig
from .digits import CLASSES


def new_model(seed: int = 0, *, width: int = 96, depth: int = 4) -> models.DiT:
    """The demo's network, 0.7 million parameters: a DiT of 16 tokens. Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.DiT(size=8, channels=1, patch=2, width=width, depth=depth, heads=4, num_classes=CLASSES)


def train_config(objective: str, seed: int = 0) -> TrainConfig:
    """Settings that suit the digits; the same for both objectives."""
    return TrainConfig(objective=objective, batch_size=64, lr=2e-3, warmup=100, ema_decay=0.995, seed=seed)
