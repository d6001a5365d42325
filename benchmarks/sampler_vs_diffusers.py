"""A sampler's step with classifier-free guidance, the network's evaluation replaced by a prepared output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.copying import copy_arms
from benchmarks.loops import STEPS, diffusers_loop, eager_loop, in_place_loop, sampler_call, sampler_steps
from benchmarks.memory import heat_of
from benchmarks.options import Options
from benchmarks.registry import Arm, Built, Case, benchmark

# Latents of a 512- and of four 1024-pixel images.
_SHAPES = {(1, 16, 64, 64): 6, (4, 16, 128, 128): 10}


def _case(shape: tuple[int, ...], faster: int, options: Options) -> Case:
    n = torch.Size(shape).numel()
    # The state and two outputs read; the doubled input written, of which the state can be one half.
    read, written = 3 * 4 * n, 2 * 4 * n
    heat = heat_of(read + written, options.device)

    def build() -> Built:
        device = options.device
        x0 = torch.randn(shape, device=device)
        out = torch.randn(2 * shape[0], *shape[1:], device=device)
        call, nfe = sampler_call("euler", x0, out, True)
        stepped, _ = sampler_steps("euler", x0, out, True)
        arms = [
            Arm("Sampler", "candidate", [call], nfe),
            Arm("Sampler start-step", "candidate", [stepped], nfe),
            Arm("eager", "baseline", [eager_loop(x0, out, True)], STEPS),
            Arm("eager in place", "baseline", [in_place_loop(x0, out, True)], STEPS),
        ]
        skipped = {}
        peer = diffusers_loop(x0, out, True)
        if isinstance(peer, str):
            skipped["diffusers Euler"] = peer
        else:
            arms.append(Arm("diffusers Euler", "baseline", [peer], STEPS))
        arms += copy_arms(read + written, device, options.threads, rotate=False)

        def check() -> None:
            expected = eager_loop(x0, out, True)()
            torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(stepped(), expected, rtol=1e-4, atol=1e-4)
            if not isinstance(
                peer, str
            ):  # its time runs the other way, so its displacement has the other sign
                torch.testing.assert_close(2 * x0 - peer(), expected, rtol=1e-4, atol=1e-4)

        return Built(arms, skipped, check)

    name = f"state {list(shape)}, CFG, {STEPS} Euler steps, per step"
    target = f"at least {faster} times faster than diffusers Euler"
    return Case(name, {"shape": list(shape)}, read, written, 5 * n, heat, build, clock="host", target=target)


@benchmark(
    "sampler_vs_diffusers",
    summary="Sampler with CFG beside diffusers' Euler pipeline loop, per step of a 20-step call. Both make the doubled "
    "input and its times, take a fixed doubled output for the network's, split, guide and step.",
    least="12 n bytes read (state, two outputs), 8 n written (doubled input, the state one half), n float32 elements",
    baselines=("eager", "eager in place", "diffusers Euler", "copy", "streaming copy"),
)
def cases(options: Options) -> Iterator[Case]:
    """The two latent shapes that the targets name; --sizes does not apply."""
    for shape, faster in _SHAPES.items():
        yield _case(shape, faster, options)
