"""The exact log-density of a small flow: every step takes the trace of the field's Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import pyflowcore as pfc
from benchmarks import ode_peers
from benchmarks.fields import Velocity, evaluation_operations, velocity
from benchmarks.matrix import matrix_arm
from benchmarks.options import Options, show_size
from benchmarks.registry import Arm, Built, Case, benchmark

STEPS = 50
DEPTH, WIDTH, DIM = 3, 64, 8


def _functional(module: Velocity, x1: Tensor, steps: int) -> Callable[[], Tensor]:
    """Euler's loop in PyTorch with torch.func: one forward-mode Jacobian a sample, all of them at once."""
    constant = 0.5 * x1.shape[1] * math.log(2 * math.pi)

    def one(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        u = module(x[None], t)[0]
        return u, u

    jacobian = torch.func.vmap(torch.func.jacfwd(one, has_aux=True), in_dims=(0, None))
    times = [torch.tensor(1 - i / steps, device=x1.device) for i in range(steps)]

    def call() -> Tensor:
        x, value = x1, x1.new_zeros(x1.shape[0])
        for t in times:
            jacobians, u = jacobian(x, t)
            x = x - u / steps
            value = value - jacobians.diagonal(dim1=1, dim2=2).sum(1) / steps
        return value - 0.5 * x.square().sum(1) - constant

    return call


def _case(batch: int, options: Options) -> Case:
    evaluation = evaluation_operations(DEPTH, WIDTH, DIM)

    def build() -> Built:
        module = velocity(DEPTH, WIDTH, dim=DIM, device=options.device)
        draw = torch.Generator().manual_seed(1)
        x1 = torch.randn(batch, DIM, generator=draw).to(options.device)
        plan = pfc.plan("euler", STEPS, grid=pfc.grids.uniform().reversed())
        fused = pfc.fuse(module.net)
        arms = [
            Arm("log_prob", "candidate", [lambda: pfc.log_prob(fused, x1, plan=plan).value]),
            Arm("log_prob, not fused", "candidate", [lambda: pfc.log_prob(module, x1, plan=plan).value]),
            Arm("torch.func", "baseline", [_functional(module, x1, STEPS)]),
        ]
        skipped = {}
        if why := ode_peers.missing("flow_matching.solver"):
            skipped["flow_matching"] = why
        else:
            call = ode_peers.flow_matching_log_prob(module, x1, STEPS)
            arms.append(Arm("flow_matching", "baseline", [call]))
        arms.append(matrix_arm(options.device))

        def check() -> None:
            expected = _functional(module.double(), x1.double(), STEPS)()
            module.float()
            for arm in arms[:-1]:
                torch.testing.assert_close(arm.calls[0]().double(), expected, rtol=1e-4, atol=1e-3)

        return Built(arms, skipped, check)

    operations = batch * STEPS * (1 + DIM) * evaluation
    name = f"{DEPTH}x{WIDTH} SiLU, {DIM} dimensions, batch {show_size(batch)}, {STEPS} Euler steps"
    params = {"depth": DEPTH, "width": WIDTH, "dim": DIM, "batch": batch, "steps": STEPS}
    target = "at least 10 times faster than flow_matching" if batch == 256 else ""
    return Case(name, params, 0, 0, operations, "hot", build, clock="host", target=target)


@benchmark(
    "log_prob",
    summary=f"Log-density with the exact divergence in {DIM} dimensions along {STEPS} Euler steps from data to a normal "
    "source, of an MLP over (x, t), fused and as any callable. The same steps and values for all, which is checked.",
    least="2 operations for each weight, sample, step and vector: the state and one tangent for each dimension",
    baselines=("torch.func", "flow_matching", "matrix product"),
)
def cases(options: Options) -> Iterator[Case]:
    """One network; --sizes are batches."""
    for batch in options.choose_sizes((256,), (256, 4096)):
        yield _case(batch, options)
