"""Sampler: plan x field -> samples, as one call or step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import branches, conditions, paths
from .capture import CapturedRun
from .edits import Hook, Inpaint, hook_edit, inpaint_edit
from .field import Field, as_field
from .given_noise import Noise, as_noise
from .guidance import CFG
from .guide import guide_for
from .initial import Begin, check_shape, count_of, seeds_once, start_of
from .plans import Plan
from .program import program_of
from .run import Run, Trajectory
from .scales import Scale

__all__ = ["Sampler"]

Callback = Callable[[int, int, float, Tensor, "Tensor | None"], object]


class Sampler:
    """Runs a plan on a field. Immutable: one object serves many threads at once.

    Args:
        plan: from ``pfc.plan(...)``.
        guidance: ``pfc.CFG(...)``, ``pfc.CFGZero(...)``, ``pfc.APG(...)``, ``pfc.Autoguidance(...)``, or None.
        branches: "batch" evaluates the conditional and the unconditional branch as one doubled batch, "calls" one after the
            other. Conditions that do not fit into one batch are evaluated by two calls, with a warning.
    """

    def __init__(self, plan: Plan, guidance: CFG | None = None, *, branches: str = "batch") -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a pfc.Plan (from pfc.plan(...)), got {type(plan).__name__}")
        if guidance is not None and not isinstance(guidance, CFG):
            raise TypeError(f"guidance must be a pfc.CFG or None, got {type(guidance).__name__}")
        if branches not in ("batch", "calls"):
            raise ValueError(f"branches must be 'batch' or 'calls', got {branches!r}")
        self.plan = plan
        self.guidance = guidance
        self.branches = branches

    def __repr__(self) -> str:
        return f"Sampler({self.plan!r}, guidance={self.guidance!r}, branches={self.branches!r})"

    def start(
        self,
        *,
        x0: Tensor | None = None,
        shape: Sequence[int] | None = None,
        init: Tensor | None = None,
        seeds: Iterable[int] | Tensor | None = None,
        noise: Noise | None = None,
        batch: int | None = None,
        guidance_scale: Scale | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        known_noise: str = "start",
        hook: Hook | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        field: Field | None = None,
        enable_grad: bool = False,
    ) -> Run:
        """A :class:`Run`, whose caller owns the loop and evaluates the network. The arguments are those of the call.

        ``field`` is optional: its time map, dtype and sign are then applied to what the run hands out and takes.
        """
        _check_callable("hook", hook)
        _check_device(device)
        facts = Field(_no_net) if field is None else as_field(field)
        if field is not None:
            self._check_field(facts)
        begin = Begin(x0, shape, init, seeds_once(seeds), batch, device, dtype, as_noise(noise))
        with torch.set_grad_enabled(enable_grad):
            run = self._start(
                facts, begin, guided=self.guidance is not None, guidance_scale=guidance_scale, enable_grad=enable_grad,
                stacked=False, edits=(hook, mask, known, known_noise), unsaid=field is None,
            )  # fmt: skip
            run.advance_silent()
        return run

    def __call__(
        self,
        field: Field | Callable[..., Tensor],
        *,
        shape: Sequence[int] | None = None,
        x0: Tensor | None = None,
        init: Tensor | None = None,
        seeds: Iterable[int] | Tensor | None = None,
        noise: Noise | None = None,
        batch: int | None = None,
        cond: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        uncond: dict[str, Any] | None = None,
        shared: dict[str, Any] | None = None,
        guidance_scale: Scale | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        known_noise: str = "start",
        hook: Hook | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        enable_grad: bool = False,
        callback: Callback | None = None,
        progress: bool = False,
        return_trajectory: bool = False,
    ) -> Tensor | Trajectory:
        """Samples. docs/running.md shows each way.

        Args:
            field: a ``pfc.Field`` or any callable ``field(x, t, **cond)``, then a velocity on the linear path.
            shape: of one sample; or
            x0: the state at the plan's first time (the noise, at t = 0), [B, *shape], any float dtype; not written; or
            init: data [B, *shape] to begin from (image to image): the state is alpha init + sigma noise at the plan's first
                time, which lies inside (0, 1) on a grid such as ``grids.uniform().partial(0.6)``.
            seeds: one integer per sample: sample i depends on its own seed only. Without them noise comes from torch's
                generator, so ``torch.manual_seed`` works.
            noise: in place of seeds, for parity with other libraries: a torch.Generator (or one per sample), from which the
                start comes, where ``x0`` does not give it, and then the plan's draws in the order of their indices; or tensors:
                one [draws, B, ...], a sequence, a mapping from draw index to [B, ...] (and "start" for the start's noise), or a
                callable of the draw index. Each draw that is needed at one time takes one slot of memory.
            batch: the number of samples where neither x0, seeds nor cond say it.
            cond, uncond: keyword arguments of the field for its two branches: tensors with a batch dimension, other objects,
                nested dicts and lists of them. uncond's tensors may be given once for all samples. A list of dicts as cond
                is several conditions; ``pfc.CFG(..., weights=...)`` weighs them.
            shared: keyword arguments that both branches get as they are.
            guidance_scale: overrides the guidance's scale for this call: a number, one per sample, or a function of t.
            mask, known: inpainting: after each step x <- M (alpha known + sigma noise) + (1 - M) x at the level of its grid
                point. ``mask`` is bool or in [0, 1] and ``known`` the data; every size of either is 1 or the state's.
            known_noise: "start", the noise that the trajectory began with (the known region then follows the path it would have
                had), or "fresh", new noise in every step.
            hook: ``hook(step, t, x)`` after each step, before ``mask``: it may write into the state x [B, ...] or return a new
                one. Predictions that a multistep solver remembers stay as they were.
            device: default x0's or init's, else cond's, else the seeds', else that of the field's parameters.
            dtype: of the state, float32 or float64; default float64 for a float64 x0, else float32.
            enable_grad: gradients through the whole solve (in x0, the field's parameters, cond and the guidance scale).
            callback: ``callback(step, nfe, t, x, denoised)`` once a step, after it: the step from 0, evaluations so far,
                the time reached, the state there (the buffer itself: read only; clone what you keep), and the data as predicted
                by the step's last evaluation (None where its prediction does not determine it, and of a step without one).
            progress: a tqdm bar.
            return_trajectory: a :class:`Trajectory` with the state at every grid point in place of the samples.

        Returns:
            x1 [B, *shape] in the state's dtype, or the Trajectory.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        _check_callable("hook", hook)
        _check_callable("callback", callback)
        _check_device(device)
        facts = as_field(field)
        self._check_field(facts)
        several = branches.conditions_of(cond)
        cond, uncond, shared = several[0], _mapping(uncond, "uncond"), _mapping(shared, "shared")
        guided = branches.guided(self.guidance, several, uncond)
        weak = self._weak(guided)
        seeds_have_device = isinstance(seeds, Tensor)
        seeds = seeds_once(seeds)
        if both := sorted(set(cond) & set(shared)):
            raise ValueError(f"shared and cond both have {', '.join(both)}")
        begin = Begin(x0, shape, init, seeds, batch, device, dtype, as_noise(noise))
        given = begin.given()
        if given is None and seeds is None and batch is None:
            batch = begin.batch = conditions.batch_of(cond)
        if device is None and given is None and (tensor := conditions.first_tensor(cond)) is not None:
            device = begin.device = tensor.device
        if device is None and given is None and not seeds_have_device:
            begin.device = facts.device()
        count = len(given) if isinstance(given, Tensor) and given.dim() else None
        doubled, split = branches.batches(
            self.branches,
            several,
            uncond,
            guided,
            count if count is not None else count_of(seeds, batch),
            weak,
        )
        with torch.set_grad_enabled(enable_grad):
            run = self._start(
                facts, begin, guided=guided, guidance_scale=guidance_scale, enable_grad=enable_grad,
                stacked=doubled is not None, edits=(hook, mask, known, known_noise), keep_points=callback is not None,
                several=len(several),
            )  # fmt: skip
        evaluate = branches.evaluator(
            facts, doubled, several, split, shared, weak or facts, self._weak_times(weak, run.buffers.x)
        )
        with torch.set_grad_enabled(enable_grad):
            return self._drive(run, facts, evaluate, callback, progress, return_trajectory)

    def capture(
        self,
        field: Field | Callable[..., Tensor],
        *,
        shape: Sequence[int],
        batch: int | None = None,
        cond: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        uncond: dict[str, Any] | None = None,
        shared: dict[str, Any] | None = None,
        guidance_scale: Scale | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        warmup: int = 1,
    ) -> CapturedRun:
        """The whole trajectory as one CUDA graph, which :class:`CapturedRun` replays with new seeds, x0, conditions and scales.

        On a device other than CUDA the same object runs the trajectory eagerly, in the same buffers, and says so by a
        ``PyflowcoreWarning`` and ``graph.captured``.

        Args:
            field, cond, uncond, shared, guidance_scale: as in the call; the conditions are examples, of the shapes and dtypes
                that are to come, and fill the buffers until others are given. The field must not synchronise, nor choose its
                way by values.
            shape, batch: of the samples; the batch may follow from cond.
            device: default that of cond's tensors, else of the field's parameters, else the CPU.
            dtype: of the state, float32 (default) or float64.
            warmup: trajectories that run before the capture.
        """
        check_shape(shape)
        _check_device(device)
        facts = as_field(field)
        self._check_field(facts)
        several = branches.conditions_of(cond)
        cond, uncond, shared = several[0], _mapping(uncond, "uncond"), _mapping(shared, "shared")
        if both := sorted(set(cond) & set(shared)):
            raise ValueError(f"shared and cond both have {', '.join(both)}")
        batch = conditions.batch_of(cond) if batch is None else count_of(None, batch)
        if batch is None:
            raise ValueError("batch must be given: nothing else says how many samples")
        if dtype not in (None, torch.float32, torch.float64):
            raise TypeError(f"dtype, the state's, must be float32 or float64, got {dtype}")
        if device is None:
            tensor = conditions.first_tensor(cond)
            device = facts.device() if tensor is None else tensor.device
        place = torch.empty(0, device=device).device  # with the index that "cuda" leaves out
        return CapturedRun(
            self, facts, shape=shape, batch=batch, several=several, uncond=uncond, shared=shared, guidance_scale=guidance_scale,
            device=place, dtype=dtype or torch.float32, warmup=warmup,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ parts
    def _weak(self, guided: bool) -> Field | None:
        """The second field of autoguidance."""
        if not guided or self.guidance is None or self.guidance.weak is None:
            return None
        self._check_field(self.guidance.weak, "weak: ")
        return self.guidance.weak

    def _check_field(self, field: Field, whose: str = "") -> None:
        if field.prediction != self.plan.prediction:
            raise ValueError(
                f"{whose}prediction: the plan is for {self.plan.prediction!r}, the field predicts {field.prediction!r}"
            )
        if not paths.same(field.path, self.plan.path):
            raise ValueError(
                f"{whose}path: the plan is for {self.plan.path}, the field was trained on {field.path}; pfc.plan(..., "
                "path=field.path, along=...) integrates it on another path"
            )

    def _start(
        self, field: Field, begin: Begin, *, guided: bool, guidance_scale: Scale | None, enable_grad: bool, stacked: bool,
        edits: tuple[Hook | None, Tensor | None, Tensor | None, str] = (None, None, None, "start"),
        keep_points: bool = False, scale_per_sample: bool = False, several: int | None = None, unsaid: bool = False,
    ) -> Run:  # fmt: skip
        """``unsaid``: there is no field, the caller's network is what the plan says."""
        plan, (hook, mask, known, known_noise) = self.plan, edits
        if not unsaid:
            plan = plan.on(field.path, field.prediction)
        fresh = mask is not None and known_noise == "fresh" and begin.noise is None
        start = start_of(
            plan,
            begin,
            enable_grad=enable_grad,
            draws=fresh,
            keep_noise=mask is not None and known_noise == "start",
        )
        state = start.state
        plan.check_range(state.dtype)
        inpaint = Inpaint.of(mask, known, known_noise, state)
        counts, guidance = branches.scales_of(
            plan, self.guidance, state, guided, guidance_scale, enable_grad, several
        )
        if scale_per_sample and guidance is not None:
            guidance = guidance.expand(*guidance.shape[:-1], state.shape[0]).contiguous()
        times = self._times(field, state, counts, stacked)
        noise = begin.noise if plan.draws else None
        program = program_of(
            plan, field.sign, zero=branches.without_branch(plan, counts),
            edited=hook is not None or inpaint is not None, given=noise is not None,
        )  # fmt: skip
        if program.origin is not None:
            counts, times = program.spread(counts), program.spread(times)
            guidance = None if guidance is None else program.spread_rows(guidance)
        if noise is not None:
            noise.check(program.draws(), state)
        run = Run(
            plan, program, state, branches=counts, stacked=stacked, times=times, dtype=field.dtype or state.dtype,
            guidance=guidance, seeds=start.seeds, differentiable=enable_grad, noise=noise, keep_points=keep_points,
            guide=guide_for(plan, self.guidance, field.sign, program, counts, guidance, state),
        )  # fmt: skip
        if hook is not None:
            run.at_grid(hook_edit(hook, run.buffers, plan.times))
        if inpaint is not None:
            inpaint.noise = start.noise
            run.at_grid(inpaint_edit(inpaint, run.buffers, plan, start.seeds, begin.noise))
        return run

    def _weak_times(self, weak: Field | None, state: Tensor) -> list[Tensor] | None:
        """The times of a second field, which sees one branch of every row of the plan."""
        return None if weak is None else self._times(weak, state, [1] * len(self.plan.facts), False)

    def _times(self, field: Field, state: Tensor, counts: list[int], stacked: bool) -> list[Tensor]:
        """The network's time of every row, computed in float64 and cast once."""
        plan = self.plan.on(field.path, field.prediction)
        if field.time is not None or (isinstance(field.prediction, str) and field.path.code is not None):
            mapped = field.map_times(plan.row_times)
        else:
            mapped = _own_times(plan, field.round_time)
        mapped = field.cast_times(mapped, state.dtype).to(state.device)
        if field.time_shape == "scalar":
            return list(mapped.unbind())
        batch, most = state.shape[0], max(counts) if stacked else 1
        # Expanded, not copied: one number a row, however large the batch is.
        lines = mapped[:, None].expand(-1, most * batch).unbind()
        if not stacked or min(counts) == most:
            return list(lines)
        return [line[: max(count, 1) * batch] for line, count in zip(lines, counts, strict=True)]

    def _drive(
        self, run: Run, field: Field, evaluate: Callable[..., tuple[Tensor, Tensor | None]], callback: Callback | None,
        progress: bool, return_trajectory: bool,
    ) -> Tensor | Trajectory:  # fmt: skip
        denoiser = None if callback is None else run.denoiser(field)
        bar = _progress_bar(self.plan.steps) if progress else None
        states = [run.buffers.x.clone()] if return_trajectory else []
        denoised: Tensor | None = None

        def on_step(index: int) -> None:
            nonlocal denoised
            if callback is not None:
                x = run.buffers.x
                before = run.version_of(x)
                callback(index, run.nfe, self.plan.times[index + 1], x, denoised)
                if run.version_of(x) != before:
                    raise ValueError(
                        "callback wrote into x, the trajectory's own buffer; it may read it, or clone it"
                    )
                denoised = None  # the next step may make no evaluation
            if bar is not None:
                bar.update()
            if return_trajectory:
                states.append(run.buffers.x.clone())

        if callback is not None or bar is not None or return_trajectory:
            run.at_grid(on_step)
        run.advance_silent()
        last = _last_evaluations(self.plan) if denoiser is not None else ()
        try:
            for step in run:
                out, uncond = evaluate(step)
                if denoiser is not None and last[step.row]:
                    denoised = denoiser(out, uncond)
                run.step(out, uncond)
        finally:
            if bar is not None:
                bar.close()
        if return_trajectory:
            return Trajectory(torch.tensor(self.plan.times, dtype=torch.float64), torch.stack(states))
        return run.x


# Its formulas are NumPy's, which a compiled function cannot trace, and it is of plans alone, as program_of.
@torch.compiler.assume_constant_result
def _own_times(plan: Plan, round_time: bool) -> Tensor:
    """The network's times, float64 [rows], of fields whose prediction or path says them."""
    return Field(_no_net, plan.prediction, plan.path, round_time=round_time).map_times(plan.row_times)


@torch.compiler.assume_constant_result
def _last_evaluations(plan: Plan) -> tuple[bool, ...]:
    """For each row whether it makes the last evaluation of a step; rows without one may follow before the step is complete."""
    last = [False] * len(plan.facts)
    latest: int | None = None
    for i, row in enumerate(plan.facts):
        latest = i if row.evaluates else latest
        if row.completes_step and latest is not None:
            last[latest] = True
    return tuple(last)


def _no_net(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("this run was started without a field: its caller evaluates the network")


def _check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, or None, got {type(value).__name__} {value!r}")


def _check_device(device: object) -> None:
    if device is None or isinstance(device, torch.device):
        return
    try:
        torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch.device or its name, got {device!r}: {error}") from None


def _mapping(value: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict of the field's keyword arguments, got {type(value).__name__}")
    return value


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from None
    return tqdm(total=total, desc="sampling", leave=False)
