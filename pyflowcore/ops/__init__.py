"""The torch operators: for each, its signature and checks, docstring, fake kernel and gradient. The compiled kernels are in
``csrc/``; ``_plain*.py`` have the PyTorch versions that run where there are none."""

from . import _plain, _plain_divergence, _plain_engine, _plain_tokens
from . import adaptive as adaptive
from .combine import combine, combine_
from .divergence import network_divergence, trajectory_log_prob
from .guide import combine_mixed_, guide_
from .interpolate import Interpolated, interpolate
from .network import network
from .qk_norm_rope import qk_norm_rope, qk_norm_rope_
from .randn import randn
from .trajectory import trajectory

__all__ = [
    "Interpolated",
    "combine",
    "combine_",
    "combine_mixed_",
    "guide_",
    "interpolate",
    "network",
    "network_divergence",
    "qk_norm_rope",
    "qk_norm_rope_",
    "randn",
    "trajectory",
    "trajectory_log_prob",
]

# Last, for the schemas above.
_plain.register()
_plain_engine.register()
_plain_divergence.register()
_plain_tokens.register()
