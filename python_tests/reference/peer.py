"""Runs schedulers of diffusers on given noise levels, as its flow pipelines do, and in float64 where a test asks for it.

A scheduler makes its own levels; here they are replaced after set_timesteps(), and everything else is left to it. Levels are
float64 scalars, so the coefficients are float64, but several schedulers cast the state to float32 in every step. `float64`
makes the name torch.float32 mean float64 inside such a scheduler's module: the formulas are then compared, and not the
roundings.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import numpy as np
import torch

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MODULES = {
    "FlowMatchEulerDiscreteScheduler": "scheduling_flow_match_euler_discrete",
    "FlowMatchHeunDiscreteScheduler": "scheduling_flow_match_heun_discrete",
    "UniPCMultistepScheduler": "scheduling_unipc_multistep",
    "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
    "DEISMultistepScheduler": "scheduling_deis_multistep",
    "LTXEulerAncestralRFScheduler": "scheduling_ltx_euler_ancestral_rf",
}


def module_of(name):
    return importlib.import_module(f"diffusers.schedulers.{MODULES[name]}")


def make(name, **options):
    """The scheduler; the multistep ones on the flow path, predicting the velocity."""
    flow = FLOW if "Multistep" in name else {}
    return getattr(module_of(name), name)(**flow, **options)


class _Torch:
    """torch, but for the name float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def float64(name):
    module = module_of(name)
    module.torch = _Torch()
    try:
        yield
    finally:
        module.torch = torch


@contextmanager
def noise(name, draw):
    """What the scheduler draws is draw(0), draw(1), ..."""
    module = module_of(name)
    theirs, count = module.randn_tensor, iter(range(10**6))
    module.randn_tensor = lambda shape, **_: draw(next(count))
    try:
        yield
    finally:
        module.randn_tensor = theirs


def load(scheduler, sigmas, dtype=torch.float64):
    """Gives the scheduler these levels, the last one included, and returns those at which the field is evaluated."""
    sigmas = [float(s) for s in sigmas]
    steps = len(sigmas) - 1
    if type(scheduler).__name__.startswith("LTX"):
        scheduler.set_timesteps(sigmas=[*sigmas[:-1], 0.0])
    else:
        scheduler.set_timesteps(steps)
    evaluated = sigmas[:-1]
    if "Heun" in type(scheduler).__name__:
        # The list of a two-stage scheduler names every inner level twice; a second stage at level 0 is left out, as by us.
        evaluated = [
            sigmas[0],
            *np.repeat(sigmas[1:-1], 2).tolist(),
            *([sigmas[-1]] if sigmas[-1] > 0 else []),
        ]
        sigmas = [*evaluated, sigmas[-1]]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64).to(dtype)
    scheduler.timesteps = 1000.0 * scheduler.sigmas[: len(evaluated)]
    scheduler.set_begin_index(0)
    return evaluated


def run(scheduler, sigmas, field, x, *, told=None, dtype=torch.float64, draw=None):
    """The states after every call of step(). field(x, sigma) is the velocity that diffusers means, d x / d sigma.

    told: the levels that the field is told, where they differ from those of the step. draw(n): noise for variance_noise.
    """
    evaluated = load(scheduler, sigmas, dtype)
    states = []
    for i, sigma in enumerate(evaluated if told is None else told):
        more = {} if draw is None else {"variance_noise": draw(i)}
        x = scheduler.step(field(x, sigma), scheduler.timesteps[i], x, return_dict=False, **more)[0]
        states.append(x)
    return states
