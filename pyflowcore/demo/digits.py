"""Real data small enough for a laptop: scikit-learn's 1,797 handwritten digits of 8x8 pixels (from UCI's Optdigits)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.optional import require

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] float32 in [-1, 1] and labels [N] int64, split into training and held-out digits."""

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor

    def all(self) -> tuple[Tensor, Tensor]:
        """Every digit, training ones first."""
        return torch.cat([self.images, self.held_images]), torch.cat([self.labels, self.held_labels])


def load(*, held_out: float = 0.2, seed: int = 0) -> Digits:
    """The digits, with a share ``held_out`` of every class kept from all training (rounded down).

    The set comes with scikit-learn, so nothing is downloaded. Raises ImportError without scikit-learn.
    """
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out must be within (0, 1); got {held_out}")
    bunch = require("sklearn.datasets", "scikit-learn").load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 8.0 - 1.0  # grey levels 0 to 16
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for digit in range(CLASSES):
        rows = torch.nonzero(labels == digit)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cut = int(held_out * len(rows))
        held.append(rows[:cut])
        kept.append(rows[cut:])
    train, test = torch.cat(kept), torch.cat(held)
    return Digits(images[train], labels[train], images[test], labels[test])
