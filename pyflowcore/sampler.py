"""Sampler: plan x field -> samples, as one call or step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import branches, conditions, engine
from .calls import Call, Callback, check_callable, check_device, check_field, mappings, read_call
from .capture import CapturedRun
from .edits import Hook, Inpaint, hook_edit, inpaint_edit
from .field import Field, as_field
from .given_noise import Noise, as_noise
from .guidance import CFG
from .guide import guide_for
from .initial import Begin, check_shape, count_of, seeds_once, start_of
from .plans import Plan
from .program import program_of
from .row_times import cast_times, no_net, times_of_rows
from .run import Run, Trajectory
from .scales import Scale

__all__ = ["Sampler"]


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
        check_callable("hook", hook)
        check_device(device)
        facts = Field(no_net) if field is None else as_field(field)
        if field is not None:
            check_field(self.plan, facts)
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
        call = read_call(
            self.plan, self.guidance, field, shape=shape, x0=x0, init=init, seeds=seeds, noise=noise, batch=batch, cond=cond,
            uncond=uncond, shared=shared, guidance_scale=guidance_scale, mask=mask, known=known, known_noise=known_noise,
            hook=hook, device=device, dtype=dtype, enable_grad=enable_grad, callback=callback, progress=progress,
            return_trajectory=return_trajectory,
        )  # fmt: skip
        return self._loop(call) if engine.obstacles(call) else engine.run(call)

    def explain(self, field: Field | Callable[..., Tensor], **arguments: Any) -> engine.Explanation:
        """What a call with these arguments would run, and on what; nothing is evaluated.

        Args:
            field: as in the call.
            arguments: those of the call; what is left out is taken as unknown (the state as float32 on the field's device).

        Returns:
            An object to print: the engine (one operator for the whole trajectory) or the loop, with the reason for the loop.

        Raises:
            TypeError, ValueError: where the call would refuse field or arguments.
        """
        return engine.explain(
            read_call(self.plan, self.guidance, field, **arguments), self.branches == "calls"
        )

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
        check_device(device)
        facts = as_field(field)
        check_field(self.plan, facts)
        several, uncond, shared = mappings(cond, uncond, shared)
        cond = several[0]
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
    def _loop(self, call: Call) -> Tensor | Trajectory:
        """The field evaluated row by row."""
        facts, weak = call.field, call.weak
        doubled, split = branches.batches(
            self.branches, call.several, call.uncond, call.guided, call.batch(), weak
        )
        with torch.set_grad_enabled(call.enable_grad):
            run = self._start(
                facts, call.begin, guided=call.guided, guidance_scale=call.guidance_scale, enable_grad=call.enable_grad,
                stacked=doubled is not None, edits=(call.hook, call.mask, call.known, call.known_noise),
                keep_points=call.callback is not None, several=len(call.several),
            )  # fmt: skip
        evaluate = branches.evaluator(
            facts,
            doubled,
            call.several,
            split,
            call.shared,
            weak or facts,
            self._weak_times(weak, run.buffers.x),
            None if call.enable_grad else self._row_times(facts, run.buffers.x),
        )
        with torch.set_grad_enabled(call.enable_grad):
            return self._drive(run, facts, evaluate, call.callback, call.progress, call.return_trajectory)

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
        times = times_of_rows(self.plan, field, state, counts, stacked)
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
        return (
            None if weak is None else times_of_rows(self.plan, weak, state, [1] * len(self.plan.facts), False)
        )

    def _row_times(self, field: Field, state: Tensor) -> Callable[[], Tensor]:
        """The network's time of every row, for fields that make something of all of them at once."""
        return lambda: cast_times(self.plan, field, state.dtype).to(state.device)

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


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from None
    return tqdm(total=total, desc="sampling", leave=False)
