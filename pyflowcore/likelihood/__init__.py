"""Likelihood: log-densities of a flow, along its trajectories."""

from .density import LogProb, SampleWithLogProb, log_prob, sample_with_log_prob
from .probes import Hutchinson

__all__ = ["Hutchinson", "LogProb", "SampleWithLogProb", "log_prob", "sample_with_log_prob"]
