"""Prepared fields: a reference model's weights, evaluated through the fused operators, for trajectories."""

from .field import PreparedField, prepare

__all__ = ["PreparedField", "prepare"]
