"""CannotFuse: why a module is not a small network, and what would be."""

from __future__ import annotations

__all__ = ["ALLOWED", "CannotFuse", "WantsLabels", "WantsSize"]

ALLOWED = (
    "A fused field is made of Linear layers; SiLU, GELU, ReLU, SELU, tanh, softplus, ELU, sigmoid and leaky ReLU; residual "
    "blocks h + body(h) that are not nested; sines and cosines of the time; constants that scale or shift; and embeddings of "
    "labels (docs/fused-fields.md)"
)


class CannotFuse(ValueError):
    """The module is not of the kind that ``pfc.fuse`` takes; the message names the part and what is allowed."""

    def __init__(self, where: str, what: str, *, allowed: bool = True, by_shapes: bool = False) -> None:
        self.where, self.what, self.allowed = where, what, allowed
        self.by_shapes = by_shapes  # another shape of the inputs might do
        super().__init__(f"{where}: {what}" + (f". {ALLOWED}." if allowed else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.where, self.what, self.allowed)


def _again(where: str, what: str, allowed: bool) -> CannotFuse:
    return CannotFuse(where, what, allowed=allowed)


class WantsLabels(Exception):
    """An input is looked up in a table: it is to be integers, one a sample."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class WantsSize(Exception):
    """An input whose size was a guess met a layer that says what it is."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, size)
        self.name, self.size = name, size
