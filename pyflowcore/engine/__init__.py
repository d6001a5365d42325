"""The engine of fused fields: a whole trajectory in one operator call, its gradient, and what runs where."""

from .explain import Explanation, explain, obstacles
from .fixed import run

__all__ = ["Explanation", "explain", "obstacles", "run"]
