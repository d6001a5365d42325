"""pyflowcore: fused, reproducible samplers for flow-matching and diffusion models."""

from . import grids, ops, paths, plot
from ._library import PyflowcoreWarning, cpu_isa, select_cpu_isa
from .building import plan, solvers
from .capture import CapturedRun
from .field import Field
from .fit import Fit, fit_plan
from .fuse import CannotFuse, FusedField, fuse
from .guidance import APG, CFG, Autoguidance, CFGZero
from .info import Info, info
from .likelihood import Hutchinson, log_prob, sample_with_log_prob
from .ops import Interpolated, interpolate, randn
from .plans import Plan
from .predictions import EDM, Scaled
from .prepare import PreparedField, prepare
from .run import Run, Step, Trajectory
from .sampler import Sampler
from .solving import Solution, Status, solve

__all__ = [
    "APG",
    "CFG",
    "EDM",
    "Autoguidance",
    "CFGZero",
    "CannotFuse",
    "CapturedRun",
    "Field",
    "Fit",
    "FusedField",
    "Hutchinson",
    "Info",
    "Interpolated",
    "Plan",
    "PreparedField",
    "PyflowcoreWarning",
    "Run",
    "Sampler",
    "Scaled",
    "Solution",
    "Status",
    "Step",
    "Trajectory",
    "cpu_isa",
    "fit_plan",
    "fuse",
    "grids",
    "info",
    "interpolate",
    "log_prob",
    "ops",
    "paths",
    "plan",
    "plot",
    "prepare",
    "randn",
    "sample_with_log_prob",
    "select_cpu_isa",
    "solve",
    "solvers",
]
