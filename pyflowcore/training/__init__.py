"""Training of flow and diffusion models: objectives, times, averages, checkpoints, a loop."""

from . import atomic, checkpoints, times
from .checkpoints import Checkpoint
from .conditional import fit
from .ema import EMA
from .loop import TrainConfig, Trainer
from .objectives import DIFFUSION, FLOW, Objective, diffusion_loss, flow_matching_loss, regression_loss

load_checkpoint = checkpoints.load

__all__ = [
    "DIFFUSION",
    "EMA",
    "FLOW",
    "Checkpoint",
    "Objective",
    "TrainConfig",
    "Trainer",
    "atomic",
    "checkpoints",
    "diffusion_loss",
    "fit",
    "flow_matching_loss",
    "load_checkpoint",
    "regression_loss",
    "times",
]
