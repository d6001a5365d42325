"""Whole trajectories around a field that returns a prepared output: what is left is what a sampler itself costs.

Every loop does what a step with classifier-free guidance takes: make the doubled input and the times that the network
is to get, take its output (here always the same tensor), split it, guide, and step. The network gets its input, in the
form it needs, in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import pyflowcore as pfc
from benchmarks.peers import PEERS, Peer, scheduler_of

STEPS = 20
SCALE = 4.0
Tensor = torch.Tensor


def sampler_call(solver: str, x0: Tensor, out: Tensor, guided: bool) -> tuple[Callable[[], Tensor], int]:
    """``pfc.Sampler`` as one call, and its evaluations. ``out`` is what the field returns, doubled where ``guided``."""
    plan = pfc.plan(solver, steps=STEPS)
    sampler = pfc.Sampler(plan, guidance=pfc.CFG(SCALE) if guided else None)

    def field(x: Tensor, t: Tensor, **_: object) -> Tensor:
        return out

    cond, uncond = ({"y": torch.full((x0.shape[0],), value, device=x0.device)} for value in (1, 0))

    def call() -> Tensor:
        samples = sampler(field, x0=x0, cond=cond, uncond=uncond) if guided else sampler(field, x0=x0)
        assert isinstance(samples, Tensor)
        return samples

    return call, plan.nfe


def sampler_steps(solver: str, x0: Tensor, out: Tensor, guided: bool) -> tuple[Callable[[], Tensor], int]:
    """``pfc.Sampler`` with the loop in the hands of its caller, who doubles the network's input; its evaluations."""
    plan = pfc.plan(solver, steps=STEPS)
    sampler = pfc.Sampler(plan, guidance=pfc.CFG(SCALE) if guided else None)

    def call() -> Tensor:
        run = sampler.start(x0=x0)
        for step in run:
            if guided:
                torch.cat([step.x, step.x])
            run.step(out)
        return run.x

    return call, plan.nfe


def peer_call(peer: Peer, x0: Tensor, out: Tensor, guided: bool) -> tuple[Callable[[], Tensor], int]:
    """``pfc.Sampler`` on the levels of ``peer``, as one call, and its evaluations. The field's velocity is diffusers', which
    points from data to noise."""
    plan = pfc.plan(peer.solver, grid=pfc.grids.sigmas(peer.levels(STEPS)), **peer.options)
    sampler = pfc.Sampler(plan, guidance=pfc.CFG(SCALE) if guided else None)

    def net(x: Tensor, t: Tensor, **_: object) -> Tensor:
        return out

    field = pfc.Field(net, sign=-1)
    arguments: dict[str, Any] = {"x0": x0, "seeds": torch.arange(x0.shape[0])}
    if guided:
        cond, uncond = ({"y": torch.full((x0.shape[0],), value, device=x0.device)} for value in (1, 0))
        arguments |= {"cond": cond, "uncond": uncond}

    def call() -> Tensor:
        samples = sampler(field, **arguments)
        assert isinstance(samples, Tensor)
        return samples

    return call, plan.nfe


def diffusers_loop(
    x0: Tensor,
    out: Tensor,
    guided: bool,
    peer: Peer = PEERS["Euler"],
    noise: Callable[[int], Tensor] | None = None,
) -> Callable[[], Tensor] | str:
    """The denoising loop of diffusers' flow pipelines with the scheduler of ``peer``; a reason where diffusers is missing.

    ``noise(i)`` is what step i of a scheduler that draws takes in place of its own: for checks, never where it is timed.
    """
    scheduler = scheduler_of(peer, STEPS)
    if isinstance(scheduler, str):
        return scheduler
    timesteps = scheduler.timesteps.to(x0.device)

    def call() -> Tensor:
        scheduler.begin()
        x = x0
        for i, t in enumerate(timesteps):
            network_input = torch.cat([x, x]) if guided else x
            t.expand(network_input.shape[0])
            prediction = out
            if guided:
                cond, uncond = prediction.chunk(2)
                prediction = uncond + SCALE * (cond - uncond)
            if noise is None:
                x = scheduler.step(prediction, t, x, return_dict=False)[0]
            else:
                x = scheduler.step(prediction, t, x, variance_noise=noise(i), return_dict=False)[0]
        return x

    return call


def eager_loop(x0: Tensor, out: Tensor, guided: bool) -> Callable[[], Tensor]:
    """The plainest Euler loop in PyTorch."""
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64).tolist()

    def call() -> Tensor:
        x = x0
        for i in range(STEPS):
            network_input = torch.cat([x, x]) if guided else x
            x.new_full((network_input.shape[0],), times[i])
            prediction = out
            if guided:
                cond, uncond = prediction.chunk(2)
                prediction = uncond + SCALE * (cond - uncond)
            x = x + (times[i + 1] - times[i]) * prediction
        return x

    return call


def in_place_loop(x0: Tensor, out: Tensor, guided: bool) -> Callable[[], Tensor]:
    """The same by hand with as few passes and as little new memory as torch's operators allow."""
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64).tolist()
    batch = x0.shape[0]
    doubled = x0.new_empty((2 * batch, *x0.shape[1:]))
    network_times = x0.new_empty((2 * batch if guided else batch,))
    prediction = torch.empty_like(x0)

    def call() -> Tensor:
        x = x0.clone()
        for i in range(STEPS):
            network_times.fill_(times[i])
            if guided:
                doubled[:batch].copy_(x)
                doubled[batch:].copy_(x)
                torch.lerp(out[batch:], out[:batch], SCALE, out=prediction)
                x.add_(prediction, alpha=times[i + 1] - times[i])
            else:
                x.add_(out, alpha=times[i + 1] - times[i])
        return x

    return call
