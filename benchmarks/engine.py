"""Whole trajectories of small fields: the engine beside the loops, compilers and solvers that users have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import pyflowcore as pfc
from benchmarks import ode_peers, trajectories, xla
from benchmarks.fields import Velocity, evaluation_operations, velocity
from benchmarks.matrix import in_precision, matrix_arm
from benchmarks.options import Options, show_size
from benchmarks.registry import Arm, Built, Case, benchmark

STEPS = 50
NETWORKS = ((3, 64), (4, 128), (4, 256), (4, 512))
_PRECISIONS = ("float32", "tf32", "bfloat16")
# Share of the rate of the matrix product that is wanted on CPUs at batches of 256 and more, by width.
_SHARE = {64: 55, 128: 70, 256: 75, 512: 75}
_Call = Callable[[], Tensor]


@dataclass(frozen=True)
class _Problem:
    depth: int
    width: int
    batch: int
    activation: str = "SiLU"
    precision: str = "float32"

    @property
    def name(self) -> str:
        network = f"{self.depth}x{self.width} {self.activation}"
        return f"{network}, {self.precision}, batch {show_size(self.batch)}, {STEPS} Euler steps"

    def field(self, module: Velocity) -> Callable[[Tensor, Tensor], Tensor]:
        """The module as a baseline calls it in this precision: states stay float32."""
        if self.precision != "bfloat16":
            return module
        half = velocity(
            self.depth, self.width, activation=self.activation, device=str(module.layers()[0][0].device)
        ).bfloat16()
        return lambda x, t: half(x.bfloat16(), t).float()

    def target(self, device: str) -> str:
        if device == "cuda":
            if self.batch == 1 << 20 and self.width == 128 and self.precision == "bfloat16":
                return f"at least {40 if self.activation == 'ReLU' else 25} % of the matrix product's rate"
            if self.batch <= 4096 and self.width <= 128:
                return "at least 20 times faster than eager, 5 times than torch.compile in a CUDA graph"
            return ""
        wanted = []
        if self.batch >= 256:
            wanted.append(f"at least {_SHARE[self.width]} % of the matrix product's rate")
        if self.width == 64:
            wanted.append("at least 1.5 times faster than diffrax")
            if self.batch in (1, 256):
                wanted.append(f"{20 if self.batch == 1 else 5} times than torch.compile")
        else:
            wanted.append("never slower than diffrax")
        return ", ".join(wanted)


def same(result: Tensor, expected: Tensor, precision: str) -> None:
    """Raise where two ways to one result differ by more than the precision excuses."""
    if precision == "float32":
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    else:
        apart = float((result.double() - expected.double()).norm() / expected.double().norm())
        if not apart < 0.02:
            raise AssertionError(f"{precision}: results are {apart:.3g} apart, relative to their norm")


def _candidates(problem: _Problem, module: Velocity, x0: Tensor) -> list[Arm]:
    plan = pfc.plan("euler", steps=STEPS)
    sampler = pfc.Sampler(plan)
    fused = pfc.fuse(module.net, precision=problem.precision)
    params = fused.params(x0.dtype, x0.device)
    times = torch.tensor([row.t for row in plan.facts], dtype=torch.float64)
    branches = torch.ones(len(times), dtype=torch.int64)
    trajectory = torch.ops.pyflowcore.trajectory.default
    precision = _PRECISIONS.index(problem.precision)

    def operator() -> Tensor:
        samples: Tensor = trajectory(
            x0, times, None, params, fused.layers, fused.features, plan.table, branches, None, None, None, False,
            precision,
        )[0]  # fmt: skip
        return samples

    def stepped(x: Tensor, t: Tensor) -> Tensor:
        return fused(x, t)

    return [
        Arm("Sampler", "candidate", [lambda: sampler(fused, x0=x0)]),
        Arm("operator", "candidate", [operator]),
        Arm("Sampler, step by step", "candidate", [lambda: sampler(stepped, x0=x0)]),
    ]


def _peers(options: Options, problem: _Problem, module: Velocity, x0: Tensor) -> dict[str, _Call | str]:
    """Every baseline as a call, or why there is none."""
    field = problem.field(module)
    key = ("engine", problem)
    peers: dict[str, _Call | str] = {
        "eager": trajectories.stepping(trajectories.euler_step(field, STEPS), x0, STEPS),
        "torch.compile step": trajectories.compiled_steps(options, key, field, x0, STEPS),
    }
    if problem.batch > 1 or problem.width > 128:
        peers["torch.compile loop"] = "unrolled steps compile for a minute, and gain where calls dominate"
    else:
        peers["torch.compile loop"] = trajectories.compiled_loop(options, key, field, x0, STEPS)
    if options.device == "cuda":
        peers["torch.compile graph"] = trajectories.graphed_steps(options, key, field, x0, STEPS)
    for name, package, make in (
        ("flow_matching", "flow_matching.solver", ode_peers.flow_matching_euler),
        ("torchdiffeq", "torchdiffeq", ode_peers.torchdiffeq_euler),
    ):
        peers[name] = ode_peers.missing(package) or make(field, x0, STEPS)
    why = xla.diffrax_or_reason(options.device, options.threads)
    for constants, name in ((False, "diffrax"), (True, "diffrax, constant weights")):
        peers[name] = why or xla.euler(module, x0, STEPS, constants=constants)
    return peers


def _case(problem: _Problem, options: Options) -> Case:
    operations = problem.batch * STEPS * evaluation_operations(problem.depth, problem.width)

    def build() -> Built:
        module = velocity(problem.depth, problem.width, activation=problem.activation, device=options.device)
        draw = torch.Generator().manual_seed(1)
        x0 = torch.randn(problem.batch, 2, generator=draw).to(options.device)
        peers = _peers(options, problem, module, x0)
        arms = _candidates(problem, module, x0)
        for name, call in peers.items():
            if not isinstance(call, str):
                arms.append(Arm(name, "baseline", [in_precision(problem.precision, call)]))
        if problem.batch >= 256:
            arms.append(matrix_arm(options.device, problem.precision))

        def check() -> None:
            expected = trajectories.stepping(trajectories.euler_step(module, STEPS), x0, STEPS)()
            for arm in arms:
                if arm.role != "ceiling":
                    result = arm.calls[0]()
                    result = result if isinstance(result, Tensor) else xla.as_tensor(result)
                    same(result, expected, problem.precision)
            _check_evaluations(module, x0[:1])

        return Built(arms, {name: why for name, why in peers.items() if isinstance(why, str)}, check)

    params = {"depth": problem.depth, "width": problem.width, "batch": problem.batch, "steps": STEPS}
    params |= {"activation": problem.activation, "precision": problem.precision}
    return Case(
        problem.name,
        params,
        0,
        0,
        operations,
        "hot",
        build,
        clock="host",
        target=problem.target(options.device),
    )


def _check_evaluations(module: Velocity, x0: Tensor) -> None:
    """The solvers that make their own steps from a step size make as many as the others."""
    for package, make in (
        ("flow_matching.solver", ode_peers.flow_matching_euler),
        ("torchdiffeq", ode_peers.torchdiffeq_euler),
    ):
        if not ode_peers.missing(package):
            counted = ode_peers.Counted(module)
            make(counted, x0, STEPS)()
            if counted.calls != STEPS:
                raise AssertionError(f"{package} evaluates {counted.calls} times, not {STEPS}")


@benchmark(
    "engine",
    summary=f"{STEPS} Euler steps of an MLP over (x, t), 2 dimensions, as one call: the engine through pfc.Sampler, the bare "
    "operator, and pfc.Sampler over the fused network step by step. Same weights and evaluations for all, and the same "
    "samples, which is checked.",
    least="2 operations for each weight, sample and step; activations are not counted. At a batch of 1 no ceiling is shown: "
    "there the weights' way from the cache and the call decide",
    baselines=(
        "eager",
        "torch.compile step",
        "torch.compile loop",
        "torch.compile graph",
        "flow_matching",
        "torchdiffeq",
        "diffrax",
        "diffrax, constant weights",
        "matrix product",
    ),
)
def cases(options: Options) -> Iterator[Case]:
    """Four networks at each batch; --sizes are batches. CUDA: in each precision, and with ReLU at the largest."""
    batches = options.choose_sizes((1, 256, 4096), (1, 256, 4096, 1 << 16, 1 << 20))
    for depth, width in NETWORKS:
        for batch in batches:
            for precision in _PRECISIONS if options.device == "cuda" else _PRECISIONS[:1]:
                yield _case(_Problem(depth, width, batch, precision=precision), options)
    if options.device == "cuda":
        for batch in batches[-1:]:
            yield _case(_Problem(4, 128, batch, "ReLU", "bfloat16"), options)
