"""What a call costs before it does any work: of each operator, and of a Sampler's step on a small state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

import pyflowcore as pfc
from benchmarks.loops import STEPS, diffusers_loop, eager_loop, in_place_loop, sampler_call, sampler_steps
from benchmarks.options import Options
from benchmarks.registry import Arm, Built, Case, benchmark

_STATE = 1 << 12
_LABEL = "a state of 4K elements"


def _operators(options: Options) -> Built:
    device = options.device
    x, out = (torch.randn(1, 4, device=device) for _ in range(2))
    doubled, inp = (torch.randn(2, 4, device=device) for _ in range(2))
    table = pfc.plan("euler", steps=10).table
    guidance = torch.full((table.shape[0], 1), 4.0, device=device)
    seeds, t = torch.zeros(1, dtype=torch.int64, device=device), torch.full((1,), 0.5, device=device)
    ops = torch.ops.pyflowcore

    def bound(function: Callable[..., object], *arguments: object) -> list[Callable[[], object]]:
        return [functools.partial(function, *arguments)]

    combine_ = ops.combine_.default
    none = (None,) * 3
    return Built(
        [
            Arm("combine_", "candidate", bound(combine_, x, *none, None, out, None, None, None, table, 3)),
            Arm(
                "combine_ CFG",
                "candidate",
                bound(combine_, x, None, None, inp, None, doubled, None, guidance, None, table, 3),
            ),
            Arm("combine", "candidate", bound(ops.combine.default, x, None, [], [out], None, None, table, 3)),
            Arm("randn", "candidate", bound(ops.randn.default, seeds, [4], 0, 0, torch.float32)),
            Arm(
                "interpolate",
                "candidate",
                bound(ops.interpolate.default, x, t, out, None, 0, 0.0, 0.0, 0, 3, 0),
            ),
            Arm("torch add_", "baseline", bound(functools.partial(x.add_, alpha=1e-6), out)),
            Arm("torch add", "baseline", bound(torch.add, x, out)),
            Arm("torch.randn", "baseline", bound(torch.randn, (1, 4))),
        ]
    )


def _sampler(solver: str, guided: bool, options: Options) -> Built:
    batch = 4
    x0 = torch.randn(batch, _STATE // batch, device=options.device)
    out = torch.randn((2 if guided else 1) * batch, _STATE // batch, device=options.device)
    call, nfe = sampler_call(solver, x0, out, guided)
    stepped, _ = sampler_steps(solver, x0, out, guided)
    arms = [
        Arm("Sampler", "candidate", [call], nfe),
        Arm("Sampler start-step", "candidate", [stepped], nfe),
    ]
    skipped = {}
    if solver == "euler":
        arms += [
            Arm("eager", "baseline", [eager_loop(x0, out, guided)], STEPS),
            Arm("eager in place", "baseline", [in_place_loop(x0, out, guided)], STEPS),
        ]
        peer = diffusers_loop(x0, out, guided)
        if isinstance(peer, str):
            skipped["diffusers Euler"] = peer
        else:
            arms.append(Arm("diffusers Euler", "baseline", [peer], STEPS))

    def check() -> None:
        # A field that does not depend on the state moves it by its output over the unit of time, whatever the solver.
        moved = out[batch:] + 4.0 * (out[:batch] - out[batch:]) if guided else out
        for result in (call(), stepped()):
            torch.testing.assert_close(result, x0 + moved, rtol=1e-4, atol=1e-4)

    return Built(arms, skipped, check)


@benchmark(
    "dispatch",
    summary="Host time of each operator on four elements, and of a Sampler's step beyond the field on 4K elements: "
    "whole calls of 20 steps, set-up included, for each evaluation of a field that returns a prepared tensor.",
    least="none: all of it is overhead",
    baselines=("torch add_", "torch add", "torch.randn", "eager", "eager in place", "diffusers Euler"),
)
def cases(options: Options) -> Iterator[Case]:
    """Sizes are fixed; --sizes does not apply."""

    def case(name: str, build: Callable[[], Built], target: str = "") -> Case:
        return Case(name, {}, 0, 0, 0, "hot", build, clock="host", target=target)

    yield case("operator call on 4 elements", functools.partial(_operators, options))
    for solver in ("euler", "heun", "ab2"):
        for guided in (False, True):
            name = f"Sampler step, {solver}{', CFG' if guided else ''}, {_LABEL}"
            yield case(name, functools.partial(_sampler, solver, guided, options), "at most 25 us")
