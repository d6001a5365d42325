"""What candidates are run beside: torch.compile of the eager code, and the schedulers of diffusers, or why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor import list_mode_options

from benchmarks.options import Options

# Compiled functions by (what, shapes, threads): compiling takes seconds, and each repeat builds its cases anew.
_compiled: dict[Hashable, Callable[..., object] | str] = {}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def compiled(
    options: Options,
    key: Hashable,
    function: Callable[..., object],
    *arguments: object,
    mode: str | None = None,
    frozen: bool = False,
) -> Callable[..., object] | str:
    """``function`` under torch.compile, for these very shapes, after a first call; a reason where that fails.

    ``arguments`` may be changed by that call if ``function`` changes its arguments. ``mode`` is torch.compile's.
    ``frozen`` lets Inductor take the weights for constants, which it packs: an option that users have to find.
    """
    if "torch.compile" in options.without:
        return "left out by --without"
    key = (key, options.device, options.threads, mode, frozen)
    if key not in _compiled:
        # Generated CPU code has the thread count written into it, so nothing is taken from a cache of another run.
        torch.compiler.config.force_disable_caches = True
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 1000)
        # As options, not as a mode and a setting around the call: functions of one code are told apart by them alone, and else
        # the first one's graph would serve.
        settings = {**(list_mode_options(mode) if mode else {}), "freezing": frozen}
        compiled_function: Callable[..., object] = torch.compile(
            function, fullgraph=True, dynamic=False, options=settings
        )
        graphs = counters["stats"]["unique_graphs"]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*force_disable_caches")
                compiled_function(*arguments)
            _compiled[key] = compiled_function
            if counters["stats"]["unique_graphs"] == graphs:
                _compiled[key] = (
                    "torch.compile took the graph of another function: nothing of its own to time"
                )
        except Exception as error:  # whatever stops the compiler is the reason that is shown
            _compiled[key] = f"torch.compile failed: {_first_line(error)}"
    return _compiled[key]


def euler_scheduler(steps: int) -> Any | str:
    """diffusers' FlowMatchEulerDiscreteScheduler with ``steps`` steps, or the reason why there is none."""
    try:
        from diffusers import FlowMatchEulerDiscreteScheduler
    except Exception as error:  # an import can fail in the package's own dependencies
        return f"diffusers cannot be imported: {_first_line(error)}"
    scheduler: Any = FlowMatchEulerDiscreteScheduler()  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(steps)
    return scheduler


@dataclass(frozen=True)
class Peer:
    """A solver of ours and diffusers' scheduler that takes the same steps.

    ``last``: the level, 1 - t, at which both end; diffusers' DEIS is not finite at 0.
    """

    label: str
    solver: str
    options: dict[str, Any]
    scheduler: str
    theirs: dict[str, Any]
    last: float = 0.0

    def levels(self, steps: int) -> list[float]:
        """Even levels from 0.97: at 1 itself diffusers' DEIS and UniPC are not defined."""
        return [0.97 + (self.last - 0.97) * i / steps for i in range(steps + 1)]


_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
PEERS = {
    peer.label: peer
    for peer in (
        Peer("Euler", "euler", {}, "FlowMatchEulerDiscreteScheduler", {}),
        Peer("Heun", "heun", {}, "FlowMatchHeunDiscreteScheduler", {}),
        Peer("UniPC-2", "unipc", {}, "UniPCMultistepScheduler", _FLOW),
        Peer("DPM++2M", "dpmpp_2m", {}, "DPMSolverMultistepScheduler", _FLOW),
        Peer(
            "DPM++2M SDE", "dpmpp_2m_sde", {}, "DPMSolverMultistepScheduler",
            {**_FLOW, "algorithm_type": "sde-dpmsolver++"},
        ),
        Peer("DEIS-3", "deis", {"variant": "logrho"}, "DEISMultistepScheduler", {**_FLOW, "solver_order": 3}, 0.02),
    )
}  # fmt: skip


class Scheduler:
    """diffusers' scheduler of ``peer`` on its levels, which begins anew at no cost.

    The public way to begin again is to choose the timesteps anew, which costs more: it is spared the peer.
    """

    def __init__(self, peer: Peer, steps: int) -> None:
        import diffusers

        self._scheduler: Any = getattr(diffusers, peer.scheduler)(**peer.theirs)
        self._scheduler.set_timesteps(steps)
        levels = peer.levels(steps)
        evaluated = levels[:-1]
        if "Heun" in peer.scheduler:
            evaluated = [levels[0], *(level for level in levels[1:-1] for _ in range(2))]
        self._scheduler.sigmas = torch.tensor([*evaluated, levels[-1]])
        self._scheduler.set_begin_index(0)
        self.timesteps: torch.Tensor = (1000.0 * self._scheduler.sigmas[:-1]).to(
            self._scheduler.timesteps.dtype
        )
        self._scheduler.timesteps = self.timesteps
        self.step: Callable[..., tuple[torch.Tensor]] = self._scheduler.step

    def begin(self) -> None:
        scheduler = self._scheduler
        scheduler._step_index = None
        for name, value in (("lower_order_nums", 0), ("last_sample", None), ("dt", None)):
            if hasattr(scheduler, name):
                setattr(scheduler, name, value)
        if hasattr(scheduler, "model_outputs"):
            scheduler.model_outputs = [None] * len(scheduler.model_outputs)


def scheduler_of(peer: Peer, steps: int) -> Scheduler | str:
    """The scheduler, or the reason why there is none."""
    try:
        return Scheduler(peer, steps)
    except Exception as error:  # an import can fail in the package's own dependencies
        return f"diffusers cannot be used: {_first_line(error)}"
