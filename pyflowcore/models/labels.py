"""Class labels as the models take them: given, or "no label", and refused where they do not fit."""

from __future__ import annotations

import torch
from torch import Tensor


def labels_or_null(y: Tensor | None, x: Tensor, num_classes: int, model: str) -> Tensor | None:
    """The labels [B] to look up for the samples x [B, ...]: y as given, or the null class ``num_classes`` for None.

    Returns None for a ``model`` (its name, for messages) without classes, ``num_classes`` = 0.

    Raises:
        ValueError: if y has another shape than [B], or is given to a model without classes.
    """
    if not num_classes:
        if y is not None:
            raise ValueError(f"y was given to a {model} without classes: build it with num_classes=")
        return None
    if y is None:
        return torch.full(x.shape[:1], num_classes, dtype=torch.int64, device=x.device)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must hold one label a sample, [{x.shape[0]}]; got {list(y.shape)}")
    return y
