"""Solves by diffrax under jax.jit, on weights copied from a torch module; or the reason why there are none.

XLA takes its number of CPU threads from the environment when its client starts (PJRT_NPROC). So the client is started anew
when a run goes on to another thread count, and what was compiled for the old one is left behind with its case.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fields import Velocity

Call = Callable[[], Any]
_started: list[int] = []  # the thread count of the running client


def _start(threads: int) -> None:
    if _started == [threads]:
        return
    os.environ["PJRT_NPROC"] = str(threads)
    from jax.extend import backend

    backend.clear_backends()
    _started[:] = [threads]


def diffrax_or_reason(device: str, threads: int) -> str:
    """Why diffrax cannot run here; empty where it can."""
    if device != "cpu":
        return "measured on CPUs alone"
    try:
        import diffrax  # noqa: F401

        _start(threads)
    except Exception as error:  # an import can fail in the package's own dependencies
        return f"diffrax cannot be imported: {type(error).__name__}: {error}"
    return ""


def as_tensor(array: Any) -> Tensor:
    """A jax array as a torch tensor, for checks."""
    return torch.from_numpy(np.array(array))


def _weights(field: Velocity) -> Any:
    """(weight [in, out], bias [out]) of each layer as jax arrays. A row-major [in, out] is what XLA multiplies fastest."""
    import jax.numpy as jnp

    return [(jnp.asarray(w.numpy().T.copy()), jnp.asarray(b.numpy())) for w, b in field.layers()]


def _velocity(t: Any, x: Any, weights: Any) -> Any:
    """The field of SiLU layers for x [B, dim] or [dim]."""
    import jax
    import jax.numpy as jnp

    h = jnp.concatenate([x, jnp.broadcast_to(t, (*x.shape[:-1], 1)).astype(x.dtype)], axis=-1)
    for number, (weight, bias) in enumerate(weights):
        h = h @ weight + bias
        if number < len(weights) - 1:
            h = jax.nn.silu(h)
    return h


def _jitted(solve: Callable[[Any, Any], Any], x0: Tensor, weights: Any, constants: bool) -> Call:
    """A call that waits for the result. ``constants``: the weights are compiled in, else they are arguments."""
    import jax
    import jax.numpy as jnp

    start = jnp.asarray(x0.numpy())
    if constants:
        compiled = jax.jit(functools.partial(solve, weights=weights))
        return lambda: jax.block_until_ready(compiled(start))
    compiled = jax.jit(solve)
    return lambda: jax.block_until_ready(compiled(start, weights))


def euler(field: Velocity, x0: Tensor, steps: int, *, constants: bool) -> Call:
    """``steps`` Euler steps of the whole batch from 0 to 1."""
    import diffrax

    def solve(x: Any, weights: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(_velocity),
            diffrax.Euler(),
            t0=0.0,
            t1=1.0,
            dt0=1 / steps,
            y0=x,
            args=weights,
            max_steps=steps + 1,
            adjoint=diffrax.ForwardMode(),
        ).ys[-1]

    return _jitted(solve, x0, _weights(field), constants)


def dopri5(field: Velocity, x0: Tensor, tolerance: float, *, per_sample: bool) -> Call:
    """Dopri5 from 0 to 1; each sample with steps of its own (vmap), or one step for the whole batch. Gives (x, steps)."""
    import diffrax
    import jax

    def one(x: Any, weights: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_velocity),
            diffrax.Dopri5(),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=x,
            args=weights,
            max_steps=1000,
            adjoint=diffrax.ForwardMode(),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        )
        return solution.ys[-1], solution.stats["num_steps"]

    solve = jax.vmap(one, in_axes=(0, None)) if per_sample else one
    return _jitted(solve, x0, _weights(field), False)
