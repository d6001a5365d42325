"""The torch operators: for each, its signature and checks, docstring, fake kernel and gradient. The compiled kernels are in
``csrc/``; ``_plain.py`` has the PyTorch versions that run where there are none."""

from . import _plain, adaptive
from .combine import combine, combine_
from .guide import combine_mixed_, guide_
from .interpolate import Interpolated, interpolate
from .randn import randn

__all__ = ["Interpolated", "combine", "combine_", "combine_mixed_", "guide_", "interpolate", "randn"]

# Last, for the schemas above.
_plain.register()
