"""log_prob and sample_with_log_prob: the log-density of a flow, along its trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .. import conditions
from ..field import Field, as_field
from ..initial import check_shape
from ..ops.randn import randn, seeds_tensor
from ..plans import Plan
from .divergence import MEMORY, Trace
from .fixed import check_plan, integrate
from .probes import Hutchinson
from .sources import draw, log_density

__all__ = ["LogProb", "SampleWithLogProb", "log_prob", "sample_with_log_prob"]


class LogProb(NamedTuple):
    """value [B] float64; stderr [B] float64, 0 where exact, nan of a single probe; nfe [B] int64, evaluations."""

    value: Tensor
    stderr: Tensor
    nfe: Tensor


class SampleWithLogProb(NamedTuple):
    """x [B, ...] and the fields of :class:`LogProb`."""

    x: Tensor
    value: Tensor
    stderr: Tensor
    nfe: Tensor


def log_prob(
    field: Field | Callable[..., Tensor],
    x1: Tensor,
    *,
    plan: Plan,
    divergence: str | Hutchinson = "exact",
    source: Distribution | None = None,
    cond: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    enable_grad: bool = False,
) -> LogProb:
    """log p_1(x1) = log p_0(x_0) - int_0^1 div u(x_t, t) dt along the trajectory that ends in x1 (Chen et al. 2018).

    Args:
        field: a ``pfc.Field`` or a callable, then a velocity on the linear path. A sample's output must depend on that sample
            alone.
        x1: [B, ...], any float dtype; the state is float32, float64 for float64.
        plan: from data to noise: ``pfc.plan("rk4", 50, grid=pfc.grids.uniform().reversed())``. Runge-Kutta and
            Adams-Bashforth plans; the divergence is integrated by their own weights.
        divergence: "exact" (one Jacobian-vector product for each element of a sample) or ``pfc.Hutchinson(probes)``.
        source: the distribution of x_0, over a whole sample; default the standard normal (of the path's scale of noise).
        cond, shared: keyword arguments of the field: tensors with a batch dimension, and what all samples have as it is.
        chunk, memory: tangents evaluated at once, or the bytes that they may have in the field's input (default 64 MiB);
            results do not depend on it beyond rounding.
        enable_grad: gradients in x1, the field's parameters, cond and the source's parameters.

    The log-density is summed in float64 whatever the state is, and ``value`` stays float64: of images it has five digits
    before the point.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    facts = as_field(field)
    _check_plan(plan, facts, backwards=True)
    state = _state(x1, "x1", enable_grad)
    trace = _trace(divergence, state, None, chunk, memory, enable_grad)
    x0, change = integrate(plan, facts, state, _arguments(cond, shared), trace, enable_grad)
    with torch.set_grad_enabled(enable_grad):
        values = log_density(source, x0, _scale(facts, plan))[:, None] + change
    return LogProb(*_summary(values, divergence), _counts(plan, state))


def sample_with_log_prob(
    field: Field | Callable[..., Tensor],
    *,
    plan: Plan,
    shape: Sequence[int] | None = None,
    seeds: Iterable[int] | Tensor | None = None,
    batch: int | None = None,
    x0: Tensor | None = None,
    divergence: str | Hutchinson = "exact",
    source: Distribution | None = None,
    cond: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    enable_grad: bool = False,
) -> SampleWithLogProb:
    """Samples x1 and log p_1(x1), in one pass from noise to data. The arguments are those of :func:`log_prob`, and:

    Args:
        plan: from noise to data: ``pfc.plan("rk4", 50, last="full")``.
        shape: of one sample, drawn from the default source by ``seeds`` (sample i depends on its own seed only; the same start
            as that of ``pfc.Sampler``) or by torch's generator for ``batch`` samples.
        batch: with ``source``, which draws from torch's generator, or without seeds.
        seeds: also of the probes, unless ``pfc.Hutchinson`` has its own.
        x0: in place of these, starts [B, ...].
        dtype, device: of the state: float32 (default) or float64.
    """
    facts = as_field(field)
    _check_plan(plan, facts, backwards=False)
    keys = None if seeds is None else seeds_tensor(seeds, device)
    arguments = _arguments(cond, shared)
    if device is None and x0 is None and (tensor := conditions.first_tensor(cond)) is not None:
        device = tensor.device
    start = _start(facts, plan, source, shape, keys, batch, x0, dtype, device, enable_grad)
    trace = _trace(divergence, start, keys, chunk, memory, enable_grad)
    x1, change = integrate(plan, facts, start, arguments, trace, enable_grad)
    with torch.set_grad_enabled(enable_grad):
        values = log_density(source, start, _scale(facts, plan))[:, None] - change
    return SampleWithLogProb(x1, *_summary(values, divergence), _counts(plan, start))


def _check_plan(plan: Plan, field: Field, *, backwards: bool) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a pfc.Plan (from pfc.plan(...)), got {type(plan).__name__}")
    falls = plan.times[0] > plan.times[-1]
    if falls != backwards:
        ways = "from noise to data", "from data to noise"
        where = "pfc.plan(..., grid=grid.reversed()) runs so" if backwards else "an unreversed grid runs so"
        raise ValueError(
            f"plan must run {ways[backwards]}, its times go from {plan.times[0]:g} to {plan.times[-1]:g}; {where}"
        )
    check_plan(plan)


def _state(x: Tensor, name: str, enable_grad: bool) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError(f"{name} must have a batch dimension, got a scalar")
    state = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return state if enable_grad else state.detach()


def _start(
    field: Field, plan: Plan, source: Distribution | None, shape: Sequence[int] | None, keys: Tensor | None,
    batch: int | None, x0: Tensor | None, dtype: torch.dtype | None, device: torch.device | str | None, enable_grad: bool,
) -> Tensor:  # fmt: skip
    if dtype not in (None, torch.float32, torch.float64):
        raise TypeError(f"dtype, the state's, must be float32 or float64, got {dtype}")
    if x0 is not None:
        if shape is not None or batch is not None:
            raise ValueError("x0 is given: it says shape and batch, which must not be given beside it")
        return _state(x0, "x0", enable_grad).to(device=device, dtype=dtype)
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 0):
        raise ValueError(f"batch must be an integer >= 0, got {batch!r}")
    count = batch if batch is not None else None if keys is None else len(keys)
    if count is None:
        raise ValueError("seeds, batch or x0 must be given: nothing else says how many samples")
    if keys is not None and len(keys) != count:
        raise ValueError(f"batch is {count}, seeds has {len(keys)} entries")
    if source is not None:
        if shape is not None:
            raise ValueError("shape must not be given beside source, whose samples have one")
        with torch.set_grad_enabled(enable_grad):
            drawn = draw(source, count, enable_grad)
        return _state(drawn, "source's samples", enable_grad).to(device=device, dtype=dtype)
    if shape is None:
        raise ValueError("shape, of one sample, must be given, or x0 or source")
    check_shape(shape)
    if keys is None:
        keys = torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64)
    if device is None and not keys.is_cuda:
        device = field.device()
    noise = randn(keys.to(device or keys.device), shape, dtype=dtype or torch.float32)
    scale = _scale(field, plan)
    return noise if scale == 1.0 else noise * scale


def _scale(field: Field, plan: Plan) -> float:
    """The deviation of the noise at the end where the source is."""
    return float(plan.along.noise_scale)


def _trace(
    divergence: str | Hutchinson, x: Tensor, keys: Tensor | None, chunk: int | None, memory: int, enable_grad: bool
) -> Trace:  # fmt: skip
    for name, value in (("chunk", chunk), ("memory", memory)):
        if value is None and name == "chunk":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if isinstance(divergence, Hutchinson):
        probes = divergence.draw(x, keys)
    elif divergence == "exact":
        probes = None
    else:
        raise ValueError(f"divergence must be 'exact' or a pfc.Hutchinson, got {divergence!r}")
    return Trace(probes, chunk=chunk, memory=memory, differentiable=enable_grad)


def _arguments(cond: dict[str, Any] | None, shared: dict[str, Any] | None) -> dict[str, Any]:
    for name, value in (("cond", cond), ("shared", shared)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(
                f"{name} must be a dict of the field's keyword arguments, got {type(value).__name__}"
            )
    if both := sorted(set(cond or {}) & set(shared or {})):
        raise ValueError(f"shared and cond both have {', '.join(both)}")
    return {**(cond or {}), **(shared or {})}


def _summary(values: Tensor, divergence: str | Hutchinson) -> tuple[Tensor, Tensor]:
    """Mean over the estimates, and its standard error."""
    mean = values.mean(1)
    if divergence == "exact":
        return mean, torch.zeros_like(mean)
    # Of one probe the spread is not known.
    return mean, values.std(1) / values.shape[1] ** 0.5 if values.shape[1] > 1 else torch.full_like(
        mean, torch.nan
    )


def _counts(plan: Plan, x: Tensor) -> Tensor:
    return torch.full(x.shape[:1], plan.nfe, dtype=torch.int64, device=x.device)
