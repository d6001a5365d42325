"""Whole trajectories of real backbones with guidance: prepared fields beside the loops that users write and compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import pyflowcore as pfc
from benchmarks import trajectories
from benchmarks.matrix import matrix_arm
from benchmarks.options import Options, show_size
from benchmarks.registry import Arm, Built, Case, benchmark
from pyflowcore import models
from pyflowcore.demo.recipe import new_model
from pyflowcore.models.count import count

STEPS = 20
SCALE = 4.0
_Call = Callable[[], Tensor]


@dataclass(frozen=True)
class _Problem:
    """A DiT by its published name, or "digits", the demo's."""

    network: str
    batch: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.network}, {kind}, batch {show_size(self.batch)}, CFG, {STEPS} Euler steps"

    def target(self, device: str) -> str:
        if device == "cuda":
            return f"{1.3 if self.batch == 1 else 1.15} times faster than every baseline"
        return "1.15 times faster than torch.compile, 1.35 times than eager"


@functools.cache
def _model(network: str, dtype: torch.dtype, device: str) -> models.DiT:
    """Weights as after training: an adaLN-zero network answers zeros before it."""
    draw = torch.Generator().manual_seed(0)
    made = new_model() if network == "digits" else models.named(network)
    assert isinstance(made, models.DiT)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return made.to(device, dtype).eval().requires_grad_(False)


def _guided(model: models.DiT, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance as samplers write it, both branches in one batch. The state stays float32."""
    dtype = next(model.parameters()).dtype

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        out = model(torch.cat([x, x]).to(dtype), torch.cat([t, t]), y=labels)
        cond, uncond = out.float().chunk(2)
        return uncond + SCALE * (cond - uncond)

    return velocity


def _operations(network: str, batch: int) -> int:
    with torch.device("meta"):
        empty = new_model() if network == "digits" else models.named(network)
        assert isinstance(empty, models.DiT)
        found = count(
            empty, torch.empty(2 * batch, *empty.shape), torch.empty(2 * batch), torch.empty(2 * batch, dtype=torch.int64)
        )  # fmt: skip
    return 2 * found.products * STEPS


def _candidates(model: models.DiT, x0: Tensor, labels: Tensor, device: str) -> list[Arm]:
    """Prepared as users sample with it, captured where there are graphs to capture, and without what is made ahead."""
    sampler = pfc.Sampler(pfc.plan("euler", steps=STEPS), pfc.CFG(SCALE))
    field = pfc.prepare(model)
    batch = len(x0)
    cond, uncond = {"y": labels[:batch]}, {"y": labels[batch:]}

    def in_place(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """Not known to be prepared, so every evaluation makes its own modulations."""
        return field(x, t, **cond)

    arms = [
        Arm("prepared", "candidate", [lambda: sampler(field, x0=x0, cond=cond, uncond=uncond)]),
        Arm(
            "prepared, nothing ahead",
            "candidate",
            [lambda: sampler(in_place, x0=x0, cond=cond, uncond=uncond)],
        ),
    ]
    if device == "cuda":
        run = sampler.capture(
            field, shape=model.shape, batch=batch, cond=cond, uncond=uncond, device=x0.device
        )
        arms.insert(0, Arm("prepared, captured", "candidate", [lambda: run(x0=x0, cond=cond)]))
    return arms


def _peers(
    options: Options, problem: _Problem, model: models.DiT, x0: Tensor, labels: Tensor
) -> dict[str, _Call | str]:
    field = _guided(model, labels)
    key = ("backbones", problem)
    made = functools.partial(trajectories.compiled_steps, options, key, field, x0, STEPS)
    peers: dict[str, _Call | str] = {
        "eager": trajectories.stepping(trajectories.euler_step(field, STEPS), x0, STEPS)
    }
    if options.device == "cuda":
        peers["torch.compile"] = made(mode="max-autotune-no-cudagraphs")
        peers["torch.compile graphs"] = made(mode="max-autotune")
        # The whole loop in one graph, as the candidate is.
        peers["torch.compile, one graph"] = trajectories.graphed_steps(options, key, field, x0, STEPS)
    else:
        peers["torch.compile"] = made(mode="max-autotune")
        peers["torch.compile frozen"] = made(mode="max-autotune", frozen=True)
    return peers


def _check(arms: list[Arm], expected: Tensor, dtype: torch.dtype) -> None:
    for arm in arms:
        if arm.role == "ceiling":
            continue
        result = arm.calls[0]()
        assert isinstance(result, Tensor)
        apart = float((result.double() - expected.double()).norm() / expected.double().norm())
        if not apart < (1e-4 if dtype == torch.float32 else 0.05):
            raise AssertionError(f"{arm.name}: samples are {apart:.3g} apart, relative to their norm")


def _case(problem: _Problem, options: Options) -> Case:
    def build() -> Built:
        model = _model(problem.network, problem.dtype, options.device)
        draw = torch.Generator().manual_seed(1)
        x0 = torch.randn(problem.batch, *model.shape, generator=draw).to(options.device)
        classes = torch.arange(problem.batch) % model.num_classes
        labels = torch.cat([classes, torch.full_like(classes, model.null_class)]).to(options.device)
        arms = _candidates(model, x0, labels, options.device)
        peers = _peers(options, problem, model, x0, labels)
        arms += [Arm(name, "baseline", [call]) for name, call in peers.items() if not isinstance(call, str)]
        eager = peers["eager"]
        assert not isinstance(eager, str)
        arms.append(matrix_arm(options.device, str(problem.dtype).removeprefix("torch.")))
        skipped = {name: why for name, why in peers.items() if isinstance(why, str)}
        return Built(arms, skipped, lambda: _check(arms, eager(), problem.dtype))

    params = {"network": problem.network, "batch": problem.batch, "steps": STEPS, "dtype": str(problem.dtype)}
    target = problem.target(options.device)
    operations = _operations(problem.network, problem.batch)
    return Case(problem.name, params, 0, 0, operations, "hot", build, clock="host", target=target)


@benchmark(
    "backbones",
    summary=f"{STEPS} Euler steps of a DiT with classifier-free guidance, both branches in one batch: pfc.prepare in "
    "pfc.Sampler, and without what is made ahead of the first step. Same weights and evaluations for all, no caching "
    "between steps, and the same samples, which is checked.",
    least="2 operations for each multiply-add of the products and of attention",
    baselines=(
        "eager",
        "torch.compile",
        "torch.compile graphs",
        "torch.compile, one graph",
        "torch.compile frozen",
        "matrix product",
    ),
)
def cases(options: Options) -> Iterator[Case]:
    """float32 on CPUs, bfloat16 on CUDA; sizes are batches."""
    if options.device == "cuda":
        for batch in options.choose_sizes((1,), (1, 16)):
            yield _case(_Problem("SiT-XL/2", batch, torch.bfloat16), options)
        return
    for batch in options.choose_sizes((1,), (1,)):
        yield _case(_Problem("SiT-S/2", batch, torch.float32), options)
    for batch in options.choose_sizes((1, 16), (1,)):
        yield _case(_Problem("digits", batch, torch.float32), options)
