"""A sampler's step with classifier-free guidance, the network's evaluation replaced by a prepared output."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import pyflowcore as pfc
from benchmarks.copying import copy_arms
from benchmarks.loops import (
    STEPS,
    diffusers_loop,
    eager_loop,
    in_place_loop,
    peer_call,
    sampler_call,
    sampler_steps,
)
from benchmarks.memory import heat_of
from benchmarks.options import Options
from benchmarks.peers import PEERS, Peer
from benchmarks.registry import Arm, Built, Case, benchmark
from benchmarks.rows import streams_of
from pyflowcore.ops.randn import STREAMS

# Latents of a 512- and of four 1024-pixel images.
_SMALL, _LARGE = (1, 16, 64, 64), (4, 16, 128, 128)
# How many times faster than diffusers; solvers without a number are measured without a target.
_FASTER = {
    (_SMALL, "Euler"): 6,
    (_LARGE, "Euler"): 10,
    (_LARGE, "UniPC-2"): 18,
    (_LARGE, "DPM++2M"): 15,
}


def _work(peer: Peer, n: int) -> tuple[int, int, int]:
    """Bytes read and written and operations of one evaluation, in the mean over a step in the middle of the trajectory."""
    plan = pfc.plan(peer.solver, grid=pfc.grids.sigmas(peer.levels(STEPS)), **peer.options)
    rows = [i for i, fact in enumerate(plan.facts) if fact.step == STEPS // 2]
    moved = [streams_of(plan, i, 2) for i in rows]
    read = sum(m.state_reads + m.outputs for m in moved)
    written = sum(m.state_writes + m.inputs for m in moved)
    operations = sum(m.operations for m in moved)
    return 4 * n * read // len(rows), 4 * n * written // len(rows), n * operations // len(rows)


def _check_peer(peer: Peer, x0: torch.Tensor, out: torch.Tensor, call: Callable[[], torch.Tensor]) -> None:
    """Ours and theirs give the same samples, on the same noise where the solver draws any."""
    noise = None
    if peer.solver == "dpmpp_2m_sde":

        def noise(i: int) -> torch.Tensor:
            return pfc.randn(
                range(x0.shape[0]), x0.shape[1:], device=x0.device, stream=STREAMS["plan"], draw=i
            )

    theirs = diffusers_loop(x0, out, True, peer, noise)
    if not isinstance(theirs, str):
        torch.testing.assert_close(call(), theirs(), rtol=1e-4, atol=1e-4)


def _case(shape: tuple[int, ...], peer: Peer, options: Options) -> Case:
    n = torch.Size(shape).numel()
    read, written, operations = _work(peer, n)
    heat = heat_of(read + written, options.device)

    def build() -> Built:
        device = options.device
        x0 = torch.randn(shape, device=device)
        out = torch.randn(2 * shape[0], *shape[1:], device=device)
        call, nfe = peer_call(peer, x0, out, True)
        arms = [Arm("Sampler", "candidate", [call], nfe)]
        skipped = {}
        if peer.solver == "euler":
            whole, _ = sampler_call("euler", x0, out, True)
            stepped, _ = sampler_steps("euler", x0, out, True)
            arms += [
                Arm("Sampler start-step", "candidate", [stepped], nfe),
                Arm("eager", "baseline", [eager_loop(x0, out, True)], STEPS),
                Arm("eager in place", "baseline", [in_place_loop(x0, out, True)], STEPS),
            ]
        theirs = diffusers_loop(x0, out, True, peer)
        if isinstance(theirs, str):
            skipped[f"diffusers {peer.label}"] = theirs
        else:
            arms.append(Arm(f"diffusers {peer.label}", "baseline", [theirs], nfe))
        arms += copy_arms(read + written, device, options.threads, rotate=False)

        def check() -> None:
            _check_peer(peer, x0, out, call)
            if peer.solver == "euler":
                expected = eager_loop(x0, out, True)()
                torch.testing.assert_close(whole(), expected, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(stepped(), expected, rtol=1e-4, atol=1e-4)

        return Built(arms, skipped, check)

    name = f"state {list(shape)}, CFG, {STEPS} {peer.label} steps, per evaluation"
    faster = _FASTER.get((shape, peer.label))
    target = f"at least {faster} times faster than diffusers {peer.label}" if faster else ""
    params = {"shape": list(shape), "solver": peer.label}
    return Case(name, params, read, written, operations, heat, build, clock="host", target=target)


@benchmark(
    "sampler_vs_diffusers",
    summary="Sampler with CFG beside the loop of diffusers' pipelines with the scheduler of the same solver on the same "
    "levels, per evaluation of a 20-step call. Both make the doubled input and its times, take a fixed doubled output for the "
    "network's, split, guide and step. Both give the same samples, which is checked.",
    least="the streams of the plan's rows: Euler reads three (state, two outputs) and writes two (the doubled input, of which "
    "the state is one half); each remembered prediction is one more read, keeping the own one a write",
    baselines=(
        "eager",
        "eager in place",
        *(f"diffusers {label}" for label in PEERS),
        "copy",
        "streaming copy",
    ),
)
def cases(options: Options) -> Iterator[Case]:
    """The two latent shapes and the solvers that the targets name, and three more; --sizes does not apply."""
    for shape in (_SMALL, _LARGE):
        for peer in PEERS.values():
            yield _case(shape, peer, options)
