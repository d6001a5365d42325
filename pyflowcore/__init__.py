"""pyflowcore: fused, reproducible samplers for flow-matching and diffusion models."""

from . import grids, ops, paths
from ._library import PyflowcoreWarning, cpu_isa, select_cpu_isa
from .field import Field
from .guidance import APG, CFG, Autoguidance, CFGZero
from .info import Info, info
from .ops import Interpolated, interpolate, randn
from .plans import Plan, plan, solvers
from .run import Run, Step, Trajectory
from .sampler import Sampler

__all__ = [
    "APG",
    "CFG",
    "Autoguidance",
    "CFGZero",
    "Field",
    "Info",
    "Interpolated",
    "Plan",
    "PyflowcoreWarning",
    "Run",
    "Sampler",
    "Step",
    "Trajectory",
    "cpu_isa",
    "grids",
    "info",
    "interpolate",
    "ops",
    "paths",
    "plan",
    "randn",
    "select_cpu_isa",
    "solvers",
]
