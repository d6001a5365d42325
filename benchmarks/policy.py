"""A robot's policy on a CPU: a chunk of actions for every observation, and how long the slowest of them take."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import pyflowcore as pfc
from benchmarks.matrix import matrix_arm
from benchmarks.options import Options, show_size
from benchmarks.peers import compiled
from benchmarks.registry import Arm, Built, Case, benchmark
from benchmarks.trajectories import step_times
from pyflowcore import models
from pyflowcore.models.action_expert import Prefix
from pyflowcore.models.count import count

STEPS = 10
RUNS = 2000
OBSERVATIONS = 16  # are taken in turn: no two calls after each other see the same
TOKENS = 96
_SIZES = {
    128: {"depth": 4, "heads": 4, "kv_heads": 1, "head_dim": 32, "mlp_width": 256},
    256: {"depth": 6, "heads": 4, "kv_heads": 1, "head_dim": 64, "mlp_width": 512},
    512: {"depth": 8, "heads": 8, "kv_heads": 1, "head_dim": 64, "mlp_width": 1024},
}
_Policy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Problem:
    """``time``: "mlp", as in pi0, or "adarms", as in pi0.5."""

    time: str
    width: int
    batch: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        batch = show_size(self.batch)
        return (
            f"{self.time} {self.width}, {kind}, batch {batch}, {TOKENS} observed tokens, {STEPS} Euler steps"
        )

    def model(self) -> models.ActionExpert:
        """50 actions of 32 dimensions; observations have layers of keys and values alone."""
        return models.ActionExpert(
            horizon=50, dims=32, width=self.width, prefix_width=self.width, time=self.time, **_SIZES[self.width],  # type: ignore[arg-type]
        )  # fmt: skip


@functools.cache
def _trained(problem: _Problem, device: str) -> models.ActionExpert:
    """Weights as after training: modulations and the last layer begin as zeros."""
    draw = torch.Generator().manual_seed(0)
    made = problem.model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return made.to(device, problem.dtype).eval().requires_grad_(False)


def _operations(problem: _Problem) -> int:
    """Of the observations once and the steps; the modulations' products, which eager code makes anew in each, are in it."""
    with torch.device("meta"), torch.no_grad():
        model = problem.model()
        x, t = torch.empty(problem.batch, *model.shape), torch.empty(problem.batch)
        obs = torch.empty(problem.batch, TOKENS, problem.width)
        both = count(model, x, t, obs=obs).products
        step = count(model, x, t, prefix=model.prefix(obs)).products
    return 2 * (both - step + STEPS * step)


def _loop(model: models.ActionExpert, x0: Tensor, prefix: _Prefix, step: _Step) -> _Policy:
    """The policy as users write it: keys and values of the observation once, then Euler's loop. The state stays float32."""
    times = step_times(x0, STEPS)

    def policy(obs: Tensor) -> Tensor:
        seen = prefix(obs)
        x = x0
        for t in times:
            x = step(x, t, *seen)
        return x

    return policy


_Prefix = Callable[[Tensor], Prefix]
_Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _step_of(model: models.ActionExpert) -> _Step:
    dtype = model.out.weight.dtype

    def step(x: Tensor, t: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return x + (1 / STEPS) * model(x.to(dtype), t, prefix=Prefix(keys, values, mask)).float()

    return step


def _peers(
    options: Options, problem: _Problem, model: models.ActionExpert, x0: Tensor, obs: Tensor
) -> dict[str, _Policy | str]:
    """torch.compile gets the prefix and the step, each as a graph of its own; what lies between is a loop of ten calls."""
    step = _step_of(model)
    peers: dict[str, _Policy | str] = {"eager": _loop(model, x0, model.prefix, step)}
    for name, frozen in (("torch.compile", False), ("torch.compile frozen", True)):
        key = ("policy", problem)
        first = compiled(options, (key, "prefix"), model.prefix, obs, mode="max-autotune", frozen=frozen)
        then = compiled(
            options, (key, "step"), step, x0, step_times(x0, 1)[0], *model.prefix(obs), mode="max-autotune", frozen=frozen
        )  # fmt: skip
        failed = [one for one in (first, then) if isinstance(one, str)]
        peers[name] = failed[0] if failed else _loop(model, x0, first, then)  # type: ignore[arg-type]
    return peers


def _candidates(model: models.ActionExpert, x0: Tensor, obs: Tensor) -> dict[str, _Policy]:
    sampler = pfc.Sampler(pfc.plan("euler", steps=STEPS))
    field = pfc.prepare(model)
    with warnings.catch_warnings():
        # Without CUDA it runs eagerly, in the same buffers, and warns.
        warnings.simplefilter("ignore", pfc.PyflowcoreWarning)
        captured = sampler.capture(field, shape=model.shape, batch=len(x0), cond={"obs": obs})
    buffer = torch.empty_like(x0)

    def prepared(obs: Tensor) -> Tensor:
        found = sampler(field, x0=x0, cond={"obs": obs})
        assert isinstance(found, Tensor)
        return found

    return {
        "prepared, captured": lambda obs: captured(x0=x0, cond={"obs": obs}, out=buffer),
        "prepared": prepared,
    }


def _case(problem: _Problem, options: Options) -> Case:
    def build() -> Built:
        model = _trained(problem, options.device)
        draw = torch.Generator().manual_seed(1)
        x0 = torch.randn(problem.batch, *model.shape, generator=draw).to(options.device)
        shape = (OBSERVATIONS, problem.batch, TOKENS, problem.width)
        seen = torch.randn(shape, generator=draw).to(options.device, problem.dtype).unbind(0)
        policies: dict[str, _Policy] = _candidates(model, x0, seen[0])
        ours = set(policies)
        peers = _peers(options, problem, model, x0, seen[0])
        policies |= {name: policy for name, policy in peers.items() if not isinstance(policy, str)}
        arms = [
            Arm(name, "candidate" if name in ours else "baseline", [functools.partial(policy, obs) for obs in seen])
            for name, policy in policies.items()
        ]  # fmt: skip
        arms.append(matrix_arm(options.device, str(problem.dtype).removeprefix("torch.")))

        def check() -> None:
            for obs in seen[:2]:
                expected = policies["eager"](obs)
                for name, policy in policies.items():
                    apart = float((policy(obs) - expected).norm() / expected.norm())
                    if not apart < (1e-4 if problem.dtype == torch.float32 else 0.05):
                        raise AssertionError(f"{name}: actions are {apart:.3g} apart, relative to their norm")

        skipped = {name: why for name, why in peers.items() if isinstance(why, str)}
        return Built(arms, skipped, check)

    params = {
        "time": problem.time,
        "width": problem.width,
        "tokens": TOKENS,
        "batch": problem.batch,
        "steps": STEPS,
    }
    params |= {"dtype": str(problem.dtype).removeprefix("torch.")} | _SIZES[problem.width]
    return Case(
        problem.name, params, 0, 0, _operations(problem), "hot", build, clock="host", runs=RUNS,
        target="at least 2 times faster than torch.compile and eager" if problem.batch == 1 else "",
    )  # fmt: skip


@benchmark(
    "policy",
    summary=f"{STEPS} Euler steps of models.ActionExpert for 50 actions of 32 dimensions behind an observation of {TOKENS} "
    "tokens, which is another one at every call: pfc.prepare in pfc.Sampler, called and captured with a buffer to write into. "
    "The peers make the observation's keys and values once a call, too. One head of keys and values; width 128: depth 4, "
    "4 heads of 32, MLPs of 256; 256: depth 6, 4 heads of 64, MLPs of 512; 512: depth 8, 8 heads of 64, MLPs of 1024. Same "
    "weights and the same actions, which is checked",
    least="2 operations for each multiply-add of the products and of attention, the modulations' once a step as the model says",
    baselines=("eager", "torch.compile", "torch.compile frozen", "matrix product"),
)
def cases(options: Options) -> Iterator[Case]:
    """Three sizes, both ways of time, one in bfloat16; --sizes are batches."""
    for batch in options.choose_sizes((1,), (1,)):
        yield _case(_Problem("mlp", 128, batch, torch.float32), options)
        yield _case(_Problem("adarms", 128, batch, torch.float32), options)
        yield _case(_Problem("mlp", 256, batch, torch.float32), options)
        yield _case(_Problem("adarms", 256, batch, torch.float32), options)
        yield _case(_Problem("adarms", 256, batch, torch.bfloat16), options)
        yield _case(_Problem("adarms", 512, batch, torch.float32), options)
