"""Paths x_t = alpha(t) x1 + sigma(t) x0 between noise (t = 0) and data (t = 1)."""

from .functions import Custom, SavedPath, custom
from .named import VE, VP, Linear, LinearVP, Path, Polynomial, Trigonometric
from .registry import from_core, get, same
from .tables import AlphasCumprod, Table, from_alphas_cumprod, table

__all__ = [
    "VE",
    "VP",
    "AlphasCumprod",
    "Custom",
    "Linear",
    "LinearVP",
    "Path",
    "Polynomial",
    "SavedPath",
    "Table",
    "Trigonometric",
    "custom",
    "from_alphas_cumprod",
    "from_core",
    "get",
    "same",
    "table",
]
