"""The main job, end to end: train on real digits, sample, measure, show. Needs ``pip install pyflowcore[demo]``."""

from .pipeline import QUICK, Settings, run
from .report import Report

__all__ = ["QUICK", "Report", "Settings", "run"]
