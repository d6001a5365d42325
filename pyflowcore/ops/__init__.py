"""The torch operators: for each, its signature and checks, docstring, fake kernel and gradient. The compiled kernels are in
``csrc/``; ``_plain*.py`` have the PyTorch versions that run where there are none."""

from . import _plain, _plain_divergence, _plain_engine, _plain_tokens
from . import adaptive as adaptive
from . import block as block
from .block import (
    gate_residual,
    gate_residual_,
    gate_residual_norm,
    gate_residual_norm_,
    gelu,
    gelu_,
    norm_modulate,
    swiglu,
)
from .combine import combine, combine_
from .divergence import network_divergence, trajectory_log_prob
from .group_norm import group_norm_silu, group_norm_silu_
from .guide import combine_mixed_, guide_
from .interpolate import Interpolated, interpolate
from .network import network
from .patches import patchify, unpatchify
from .qk_norm_rope import qk_norm_rope, qk_norm_rope_
from .randn import randn
from .timestep import timestep_features
from .trajectory import trajectory

__all__ = [
    "Interpolated",
    "combine",
    "combine_",
    "combine_mixed_",
    "gate_residual",
    "gate_residual_",
    "gate_residual_norm",
    "gate_residual_norm_",
    "gelu",
    "gelu_",
    "group_norm_silu",
    "group_norm_silu_",
    "guide_",
    "interpolate",
    "network",
    "network_divergence",
    "norm_modulate",
    "patchify",
    "qk_norm_rope",
    "qk_norm_rope_",
    "randn",
    "swiglu",
    "timestep_features",
    "trajectory",
    "trajectory_log_prob",
    "unpatchify",
]

# Last, for the schemas above.
_plain.register()
_plain_engine.register()
_plain_divergence.register()
block.register()
_plain_tokens.register()
