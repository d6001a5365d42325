"""log_prob and sample_with_log_prob: the log-density of a flow, along its trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .. import conditions
from ..field import Field, as_field
from ..ops.randn import seeds_tensor
from ..plans import Plan
from ..solving import Status
from . import adaptive, fixed
from .adaptive import Control
from .arrivals import checked
from .divergence import MEMORY, Trace
from .fixed import check_plan
from .fused import FusedTrace, fused_trace
from .probes import Hutchinson
from .sources import log_density
from .starts import start_of, state_of

__all__ = ["LogProb", "SampleWithLogProb", "log_prob", "sample_with_log_prob"]


class _Density(NamedTuple):
    value: Tensor
    stderr: Tensor
    nfe: Tensor


class LogProb(_Density):
    """(value, stderr, nfe), a tuple of three, each per sample.

    Attributes:
        value: [B] float64; nan where the status is not SUCCESS, -inf outside the source's support.
        stderr: [B] float64: 0 where exact, nan of a single probe, which has no spread.
        nfe: [B] int64, evaluations of the field, each with its divergence.
        status: [B] int64, numbers of ``pfc.Status``: how the steps ended, and NON_FINITE also where the state at the last time,
            the integral of the divergence or the source's density is not a number (state and integral: not finite).
        engine: what ran.
    """

    status: Tensor
    engine: str


class _Sampled(NamedTuple):
    x: Tensor
    value: Tensor
    stderr: Tensor
    nfe: Tensor


class SampleWithLogProb(_Sampled):
    """(x, value, stderr, nfe): the samples [B, ...], and the rest as of :class:`LogProb`."""

    status: Tensor
    engine: str


def log_prob(
    field: Field | Callable[..., Tensor],
    x1: Tensor,
    *,
    plan: Plan | None = None,
    method: str = "dopri5",
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    t: tuple[float, float] = (1.0, 0.0),
    max_nfe: int = 100_000,
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
        plan: fixed steps, from data to noise: ``pfc.plan("rk4", 50, grid=pfc.grids.uniform().reversed())``. Runge-Kutta and
            Adams-Bashforth plans; the divergence is integrated by their own weights. Without a plan steps are adaptive:
        method, rtol, atol, t, max_nfe: as of :func:`pyflowcore.solve`; t is where it begins and ends. The steps are those of
            the state: the log-density stays out of the error norm.
        divergence: "exact" (one Jacobian-vector product for each element of a sample) or ``pfc.Hutchinson(probes)``.
        source: the distribution of the state at the last time, over a whole sample; default the standard normal (of the
            path's scale of noise).
        cond, shared: keyword arguments of the field: tensors with a batch dimension, and what all samples have as it is.
        chunk, memory: tangents evaluated at once, or the bytes that they may have in the field's input (default 64 MiB);
            results do not depend on it beyond rounding.
        enable_grad: gradients in x1, the field's parameters, cond and the source's parameters; of adaptive steps with the
            lengths of the accepted steps held constant.

    Returns:
        LogProb (value, stderr, nfe), each [B].

    The log-density is summed in float64 whatever the state is, and ``value`` stays float64: that of an image has
    four or five digits before the point.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed; a field that draws random numbers, or whose
            output has no derivative in x though it changes with x.

    Warns:
        PyflowcoreWarning: samples without a density, counted by status; rtol below 1e-6 with a float32 state or network.
    """
    facts = as_field(field)
    way = _way(plan, Control(t, method, rtol, atol, max_nfe), backwards=True)
    named, same = _arguments(cond, shared)
    with torch.inference_mode(False), torch.set_grad_enabled(enable_grad):
        state = state_of(x1, "x1", enable_grad)
        trace = _trace(facts, divergence, state, (named, same), None, chunk, memory, enable_grad)
        x0, change, nfe, status, steps = _integrate(way, facts, state, named, trace)
        values = log_density(source, x0, _scale(facts, way))[:, None] + change
        values, status = checked(values, x0, change, status)
        found = LogProb(*_summary(values, divergence), nfe)
    found.status, found.engine = status, _engine(steps, trace)
    return found


def sample_with_log_prob(
    field: Field | Callable[..., Tensor],
    *,
    shape: Sequence[int] | None = None,
    seeds: Iterable[int] | Tensor | None = None,
    batch: int | None = None,
    x0: Tensor | None = None,
    plan: Plan | None = None,
    method: str = "dopri5",
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    t: tuple[float, float] = (0.0, 1.0),
    max_nfe: int = 100_000,
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
        plan: from noise to data, in full at the end: ``pfc.plan("rk4", 50, last="full")``.
        shape: of one sample, drawn from the default source by ``seeds`` (sample i depends on its own seed only; the same start
            as that of ``pfc.Sampler``) or by torch's generator for ``batch`` samples.
        batch: with ``source``, which draws from torch's generator, or without seeds.
        seeds: also of the probes, unless ``pfc.Hutchinson`` has its own.
        x0: in place of these, starts [B, ...].
        dtype, device: of the state: float32 (default) or float64.
    """
    facts = as_field(field)
    way = _way(plan, Control(t, method, rtol, atol, max_nfe), backwards=False)
    keys = None if seeds is None else seeds_tensor(seeds, device)
    named, same = _arguments(cond, shared)
    if device is None and x0 is None and (tensor := conditions.first_tensor(cond)) is not None:
        device = tensor.device
    with torch.inference_mode(False), torch.set_grad_enabled(enable_grad):
        start = start_of(
            facts, _scale(facts, way), source, shape, keys, batch, x0, dtype, device, enable_grad
        )
        trace = _trace(facts, divergence, start, (named, same), keys, chunk, memory, enable_grad)
        x1, change, nfe, status, steps = _integrate(way, facts, start, named, trace)
        values = log_density(source, start, _scale(facts, way))[:, None] - change
        values, status = checked(values, x1, change, status)
        found = SampleWithLogProb(x1, *_summary(values, divergence), nfe)
    found.status, found.engine = status, _engine(steps, trace)
    return found


def _way(plan: Plan | None, control: Control, *, backwards: bool) -> Plan | Control:
    """The checked plan, or the control of adaptive steps."""
    if plan is None:
        first, last = _ends(control.t)
        control = control._replace(t=(first, last))
        name = "t"
    else:
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a pfc.Plan (from pfc.plan(...)), got {type(plan).__name__}")
        if control.t != ((1.0, 0.0) if backwards else (0.0, 1.0)):
            raise ValueError(f"t is {control.t!r}, but the plan has its own times")
        first, last, name = plan.times[0], plan.times[-1], "plan"
    if (first > last) != backwards:
        ways = "from noise to data", "from data to noise"
        hint = "pfc.plan(..., grid=grid.reversed()) does" if backwards else "an unreversed grid does"
        raise ValueError(
            f"{name} must run {ways[backwards]}, its times go from {first:g} to {last:g}"
            + (f"; {hint}" if plan is not None else "")
        )
    if plan is None:
        return control
    check_plan(plan)
    return plan


def _ends(t: Sequence[float]) -> tuple[float, float]:
    try:
        first, last = (float(one) for one in t)
    except (TypeError, ValueError):
        raise ValueError(f"t must be two times, where it begins and where it ends, got {t!r}") from None
    return first, last


def _integrate(
    way: Plan | Control, field: Field, x: Tensor, cond: dict[str, Any], trace: Trace
) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """(state at the last time, integral of div u [B, estimates], nfe [B], status [B], what took the steps)."""
    if isinstance(way, Control):
        return adaptive.integrate(way, field, x, cond, trace)
    if isinstance(trace, FusedTrace):
        steps = "fixed steps in one operator call"
        end, change = trace.along(way, x)
    else:
        steps = "fixed steps"
        end, change = fixed.integrate(way, field, x, cond, trace)
    nfe = torch.full(x.shape[:1], way.nfe, dtype=torch.int64, device=x.device)
    return end, change, nfe, torch.full_like(nfe, Status.SUCCESS), steps


def _engine(steps: str, trace: Trace) -> str:
    return f"{steps}; {trace.engine}" if trace.engine else steps


def _scale(field: Field, way: Plan | Control) -> float:
    """The deviation of the noise at the end where the source is."""
    return float((field.path if isinstance(way, Control) else way.along).noise_scale)


def _trace(
    field: Field, divergence: str | Hutchinson, x: Tensor, arguments: tuple[dict[str, Any], dict[str, Any]],
    keys: Tensor | None, chunk: int | None, memory: int, enable_grad: bool,
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
    cond, shared = arguments
    if (fused := fused_trace(field, x, {**cond, **shared}, probes, enable_grad)) is not None:
        return fused
    return Trace(probes, chunk=chunk, memory=memory, shared=shared, differentiable=enable_grad)


def _arguments(
    cond: dict[str, Any] | None, shared: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    for name, value in (("cond", cond), ("shared", shared)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(
                f"{name} must be a dict of the field's keyword arguments, got {type(value).__name__}"
            )
    if both := sorted(set(cond or {}) & set(shared or {})):
        raise ValueError(f"shared and cond both have {', '.join(both)}")
    return cond or {}, shared or {}


def _summary(values: Tensor, divergence: str | Hutchinson) -> tuple[Tensor, Tensor]:
    """Mean over the estimates, and its standard error."""
    mean = values.mean(1)
    if divergence == "exact":
        return mean, torch.zeros_like(mean)
    # Of one probe the spread is not known.
    return mean, values.std(1) / values.shape[1] ** 0.5 if values.shape[1] > 1 else torch.full_like(
        mean, torch.nan
    )
