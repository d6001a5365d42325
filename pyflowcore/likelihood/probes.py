"""Hutchinson: random probes for the trace of a Jacobian, from counters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.randn import STREAMS, randn, seeds_tensor

__all__ = ["Hutchinson"]

_KINDS = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Hutchinson:
    """The divergence as the mean of v . (J v) over random probes v with E[v v^T] = 1 (Hutchinson 1990; Grathwohl et al. 2019).

    One set of probes is drawn for a trajectory and held fixed, so the estimate is the integral of one smooth function. It is
    unbiased. With S the symmetric part of J, one Rademacher probe has the variance 2 sum_{i != j} S_ij^2, which is zero for a
    diagonal Jacobian; a Gaussian one has 2 sum_ij S_ij^2.

    Args:
        probes: how many a sample; each costs a Jacobian-vector product an evaluation. The standard error needs at least 2.
        kind: "rademacher" (entries +1 and -1) or "gaussian".
        seeds: one integer per sample: the probes of a sample follow from its seed alone, in any batch. Without them they are
            the trajectory's seeds, where it has any, or come from torch's generator (``torch.manual_seed``).
    """

    probes: int = 1
    kind: str = "rademacher"
    seeds: Iterable[int] | Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.probes, bool) or not isinstance(self.probes, int):
            raise TypeError(f"probes must be an integer, got {type(self.probes).__name__}")
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be {' or '.join(map(repr, _KINDS))}, got {self.kind!r}")
        if self.seeds is not None:  # an iterator could not be gone through again
            object.__setattr__(self, "seeds", seeds_tensor(self.seeds))

    def draw(self, like: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Probes [probes, B, ...] for a state [B, ...]: of the own seeds, else of ``seeds``, else of torch's generator."""
        keys = self.seeds if self.seeds is not None else seeds
        if keys is None:
            keys = torch.randint(-(2**63), 2**63 - 1, like.shape[:1], dtype=torch.int64)
        keys = seeds_tensor(keys, like.device)
        if keys.shape != like.shape[:1]:
            raise ValueError(f"seeds has {keys.shape[0]} entries, the batch has {like.shape[0]} samples")
        drawn = [
            randn(keys, like.shape[1:], dtype=like.dtype, stream=STREAMS["probe"], draw=k)
            for k in range(self.probes)
        ]
        probes = torch.stack(drawn)
        return probes if self.kind == "gaussian" else torch.where(probes < 0, -1.0, 1.0).to(like.dtype)
