"""Adaptive solves of small fields, and what such a solve costs beside its evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import pyflowcore as pfc
from benchmarks import ode_peers, xla
from benchmarks.engine import NETWORKS
from benchmarks.fields import evaluation_operations, velocity
from benchmarks.matrix import matrix_arm
from benchmarks.options import Options, show_size
from benchmarks.registry import Arm, Built, Case, benchmark

TOLERANCE = 1e-5
_CHECKED = 16  # samples that are compared with a solve in float64
_FIELD = "the field alone"

_PEERS = (
    ("torchdiffeq", "torchdiffeq", ode_peers.torchdiffeq_dopri5),
    ("flow_matching", "flow_matching.solver", ode_peers.flow_matching_dopri5),
    ("torchode", "torchode", ode_peers.torchode_dopri5),
)


def _solve(field: Callable[..., Tensor], x0: Tensor) -> Callable[[], pfc.Solution]:
    return lambda: pfc.solve(field, x0, [0.0, 1.0], method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)


def _evaluations(solution: pfc.Solution) -> int:
    """Evaluations of the batch: the rounds of a batched loop, or what a sample takes in the mean in the engine."""
    return solution.rounds or max(1, round(float(solution.nfe.double().mean())))


def _runge_kutta(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int = 200) -> Tensor:
    """The classical method in many steps, in the dtype of ``x``."""
    h = 1 / steps
    for i in range(steps):
        t = torch.tensor(i * h, dtype=x.dtype)
        k1 = field(x, t)
        k2 = field(x + 0.5 * h * k1, t + 0.5 * h)
        k3 = field(x + 0.5 * h * k2, t + 0.5 * h)
        k4 = field(x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def _state(result: Any) -> Tensor:
    """The end of a solve, in whatever form the arm gives it."""
    if isinstance(result, pfc.Solution):
        return result.x[-1]
    return result if isinstance(result, Tensor) else xla.as_tensor(result[0])


def _network(depth: int, width: int, batch: int, options: Options) -> Case:
    evaluation = evaluation_operations(depth, width)

    def build() -> Built:
        module = velocity(depth, width, device=options.device)
        draw = torch.Generator().manual_seed(1)
        x0 = torch.randn(batch, 2, generator=draw).to(options.device)
        fused = _solve(pfc.fuse(module.net), x0)
        arms = [
            Arm("solve", "candidate", [fused]),
            Arm("solve, not fused", "candidate", [_solve(module, x0)]),
        ]
        skipped = {}
        for name, package, make in _PEERS:
            if why := ode_peers.missing(package):
                skipped[name] = why
            else:
                arms.append(Arm(name, "baseline", [make(module, x0, TOLERANCE)]))
        for name, per_sample in (("diffrax", True), ("diffrax, one step for all", False)):
            if why := xla.diffrax_or_reason(options.device, options.threads):
                skipped[name] = why
            else:
                call = xla.dopri5(module, x0, TOLERANCE, per_sample=per_sample)
                arms.append(Arm(name, "baseline", [call]))
        if batch >= 256:
            arms.append(matrix_arm(options.device))

        def check() -> None:
            exact = _runge_kutta(velocity(depth, width).double(), x0[:_CHECKED].cpu().double())
            for arm in arms:
                if arm.role != "ceiling":
                    state = _state(arm.calls[0]())[:_CHECKED].cpu().double()
                    torch.testing.assert_close(state, exact, rtol=2e-3, atol=2e-3)

        return Built(arms, skipped, check, operations=evaluation * int(fused().nfe.sum()))

    name = f"{depth}x{width} SiLU, batch {show_size(batch)}, Dopri5 at {TOLERANCE:g}"
    params = {"depth": depth, "width": width, "batch": batch, "tolerance": TOLERANCE}
    target = "" if options.device == "cuda" else "never slower than diffrax"
    return Case(name, params, 0, 0, 0, "hot", build, clock="host", target=target)


def _overhead(batch: int, options: Options) -> Case:
    def build() -> Built:
        draw = torch.Generator().manual_seed(1)
        x0 = torch.randn(batch, 2, generator=draw).to(options.device)
        linear = nn.Linear(3, 2).requires_grad_(False)
        linear.weight.copy_(torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
        linear.bias.zero_()

        def field(x: Tensor, t: Tensor) -> Tensor:
            return -x

        fused = _solve(pfc.fuse(nn.Sequential(linear).to(options.device)), x0)
        solve = _solve(field, x0)
        time = x0.new_zeros(())
        # The fused field's own time is left in: it cannot be taken out of the kernel.
        arms = [
            Arm("solve", "candidate", [fused], _evaluations(fused())),
            Arm("solve, not fused", "candidate", [solve], _evaluations(solve()), less=_FIELD),
        ]
        skipped = {}
        for name, package, make in _PEERS:
            if why := ode_peers.missing(package):
                skipped[name] = why
                continue
            counted = ode_peers.Counted(field)
            make(counted, x0, TOLERANCE)()
            arms.append(Arm(name, "baseline", [make(field, x0, TOLERANCE)], counted.calls, less=_FIELD))
        arms.append(Arm(_FIELD, "baseline", [lambda: field(x0, time)]))

        def check() -> None:
            for arm in arms[:-1]:
                state = _state(arm.calls[0]())
                torch.testing.assert_close(state, math.exp(-1) * x0, rtol=1e-4, atol=1e-4)

        return Built(arms, skipped, check)

    name = f"overhead per evaluation of x -> -x, batch {show_size(batch)}, Dopri5 at {TOLERANCE:g}"
    params = {"batch": batch, "tolerance": TOLERANCE}
    target = "at least 20 times less than torchdiffeq"
    return Case(name, params, 0, 0, 0, "hot", build, clock="host", target=target)


@benchmark(
    "solve",
    summary="Dopri5 from 0 to 1 at a relative and absolute tolerance of 1e-5: of MLPs over (x, t), fused and as any callable, "
    "the time of the solve; of x -> -x, the time for each evaluation of the batch beyond the field's own. Every result is "
    "held to a solve in float64. torchdiffeq, flow_matching and 'one step for all' choose one step size for the whole batch.",
    least="2 operations for each weight and evaluation of a sample, as many evaluations as the first arm takes; none for the "
    "overhead",
    baselines=(
        "torchdiffeq",
        "flow_matching",
        "torchode",
        "diffrax",
        "diffrax, one step for all",
        "matrix product",
    ),
)
def cases(options: Options) -> Iterator[Case]:
    """Overhead, then the networks of `engine` at each batch; --sizes are batches."""
    yield _overhead(256, options)
    for depth, width in NETWORKS:
        for batch in options.choose_sizes((1, 256, 4096), (1, 256, 4096, 1 << 16)):
            yield _network(depth, width, batch, options)
