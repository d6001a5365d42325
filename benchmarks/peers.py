"""What candidates are run beside: torch.compile of the eager code, and diffusers' Euler scheduler, or why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch

from benchmarks.options import Options

# Compiled functions by (what, shapes, threads): compiling takes seconds, and each repeat builds its cases anew.
_compiled: dict[Hashable, Callable[..., object] | str] = {}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def compiled(
    options: Options, key: Hashable, function: Callable[..., object], *arguments: object
) -> Callable[..., object] | str:
    """``function`` under torch.compile, for these very shapes, after a first call; a reason where that fails.

    ``arguments`` may be changed by that call if ``function`` changes its arguments.
    """
    if "torch.compile" in options.without:
        return "left out by --without"
    key = (key, options.device, options.threads)
    if key not in _compiled:
        # Generated CPU code has the thread count written into it, so nothing is taken from a cache of another run.
        torch.compiler.config.force_disable_caches = True
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 1000)
        compiled_function: Callable[..., object] = torch.compile(function, fullgraph=True, dynamic=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*force_disable_caches")
                compiled_function(*arguments)
            _compiled[key] = compiled_function
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
