"""How good samples are: agreement with the asked class, Fréchet distance, memorisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to features a [N, d] and b [M, d], computed in float64.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2): Dowson & Landau 1982; as a measure of quality Heusel et
    al. 2017. Its bias falls as 1 / N, so compare distances of equal N only. ValueError unless N and M exceed d.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be [N, d] and [M, d]; got {list(a.shape)} and {list(b.shape)}")
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(f"a and b must hold more than {a.shape[1]} rows; got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = _square_root(cov_a)
    cross = _square_root(root @ cov_b @ root)
    return float((a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b - 2 * cross).diagonal().sum())


def _square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite matrix; rounding's negative eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def class_balanced(labels: Tensor, per_class: int, *, offset: int = 0) -> Tensor:
    """Indices of ``per_class`` items of every class, in class order, after skipping ``offset`` of each."""
    rows = []
    for label in torch.unique(labels):
        found = torch.nonzero(labels == label)[:, 0][offset : offset + per_class]
        if len(found) < per_class:
            raise ValueError(f"class {int(label)} holds fewer than {offset + per_class} items")
        rows.append(found)
    return torch.cat(rows)


@dataclass(frozen=True)
class Memorisation:
    """Nearest-neighbour distances among the training images (pixels, Euclidean, each image left out of its own search).

    A sample counts as *near* when it is closer to some training image than half of the training images are to their
    nearest other one (so about half of fresh real images do), and as a *copy* when closer than 95 % of them are.
    """

    train: Tensor
    median: float
    low: float

    @classmethod
    def of(cls, train: Tensor) -> Memorisation:
        """From training images [N, ...]."""
        flat = train.flatten(1)
        distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.fill_diagonal_(torch.inf).min(dim=1).values
        return cls(flat, float(nearest.quantile(0.5)), float(nearest.quantile(0.05)))

    def shares(self, images: Tensor) -> tuple[float, float]:
        """Shares of images [B, ...] that are near, and that are copies."""
        flat = images.flatten(1)
        nearest = torch.cdist(flat, self.train, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
        return float((nearest < self.median).float().mean()), float((nearest < self.low).float().mean())
