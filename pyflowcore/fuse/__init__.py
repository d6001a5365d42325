"""Fused fields: a small network as packed weights, for the engines that run whole trajectories in one kernel."""

from .errors import CannotFuse
from .field import FusedField, fuse

__all__ = ["CannotFuse", "FusedField", "fuse"]
