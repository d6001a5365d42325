"""Euler's loop over a field in PyTorch, as users write, compile and capture it: the baselines of whole trajectories."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from benchmarks.options import Options
from benchmarks.peers import compiled

Field = Callable[[Tensor, Tensor], Tensor]
Call = Callable[[], Tensor]


def step_times(x0: Tensor, steps: int) -> list[Tensor]:
    """The times of the steps, each for the whole batch."""
    return [torch.full((x0.shape[0],), i / steps, device=x0.device) for i in range(steps)]


def euler_step(field: Field, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """One of ``steps`` equal Euler steps from 0 to 1."""

    def step(x: Tensor, t: Tensor) -> Tensor:
        return x + (1 / steps) * field(x, t)

    return step


def stepping(step: Callable[[Tensor, Tensor], Tensor], x0: Tensor, steps: int) -> Call:
    """The loop around ``step``. Its times are made before, so that a call is steps alone."""
    times = step_times(x0, steps)

    def call() -> Tensor:
        x = x0
        for t in times:
            x = step(x, t)
        return x

    return call


def compiled_steps(
    options: Options, key: Hashable, field: Field, x0: Tensor, steps: int, *, mode: str | None = None, frozen: bool = False
) -> Call | str:  # fmt: skip
    """The loop around a compiled step; a reason where that fails."""
    step = compiled(
        options, (key, "step"), euler_step(field, steps), x0, step_times(x0, 1)[0], mode=mode, frozen=frozen
    )
    return step if isinstance(step, str) else stepping(step, x0, steps)  # type: ignore[arg-type]


def compiled_loop(options: Options, key: Hashable, field: Field, x0: Tensor, steps: int) -> Call | str:
    """All steps unrolled into one compiled function; a reason where that fails. It compiles for a minute."""
    step = euler_step(field, steps)

    def trajectory(x: Tensor) -> Tensor:
        for i in range(steps):
            x = step(x, x.new_full((x.shape[0],), i / steps))
        return x

    whole = compiled(options, (key, "loop"), trajectory, x0)
    return whole if isinstance(whole, str) else lambda: whole(x0)  # type: ignore[return-value]


def graphed_steps(options: Options, key: Hashable, field: Field, x0: Tensor, steps: int) -> Call | str:
    """The loop around a compiled step, the whole captured in one CUDA graph: what compiling and graphs give together.

    A call copies the start into the graph's memory and replays; the result lies there, too.
    """
    start = x0.clone()
    loop = compiled_steps(options, key, field, start, steps)
    if isinstance(loop, str):
        return loop
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            loop()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = loop()

    def call() -> Tensor:
        start.copy_(x0)
        graph.replay()
        return result

    return call
