"""Sampler: plan x field -> samples, as one call or step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import branches, conditions
from .field import Field, as_field
from .guidance import CFG
from .guide import guide_for
from .initial import count_of, initial_state, seeds_once
from .plans import Plan
from .run import Run, Trajectory, denoise_table, version_of
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
        seeds: Iterable[int] | Tensor | None = None,
        batch: int | None = None,
        guidance_scale: Scale | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        field: Field | None = None,
        enable_grad: bool = False,
    ) -> Run:
        """A :class:`Run`, whose caller owns the loop and evaluates the network. The arguments are those of the call.

        ``field`` is optional: its time map, dtype and sign are then applied to what the run hands out and takes.
        """
        facts = Field(_no_net) if field is None else as_field(field)
        if field is not None:
            self._check_field(facts)
        run = self._start(
            facts, x0=x0, shape=shape, seeds=seeds_once(seeds), batch=batch, guided=self.guidance is not None,
            guidance_scale=guidance_scale, device=device, dtype=dtype, enable_grad=enable_grad, stacked=False,
        )  # fmt: skip
        run.advance_silent()
        return run

    def __call__(
        self,
        field: Field | Callable[..., Tensor],
        *,
        shape: Sequence[int] | None = None,
        x0: Tensor | None = None,
        seeds: Iterable[int] | Tensor | None = None,
        batch: int | None = None,
        cond: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        uncond: dict[str, Any] | None = None,
        shared: dict[str, Any] | None = None,
        guidance_scale: Scale | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        enable_grad: bool = False,
        callback: Callback | None = None,
        progress: bool = False,
        return_trajectory: bool = False,
    ) -> Tensor | Trajectory:
        """Samples.

        Args:
            field: a ``pfc.Field`` or any callable ``field(x, t, **cond)``, then a velocity on the linear path.
            shape: of one sample; or
            x0: the state at the plan's first time (the noise, at t = 0), [B, *shape], any float dtype; not written.
            seeds: one integer per sample: sample i depends on its own seed only. Without them noise comes from torch's
                generator, so ``torch.manual_seed`` works.
            batch: the number of samples where neither x0, seeds nor cond say it.
            cond, uncond: keyword arguments of the field for its two branches: tensors with a batch dimension, other objects,
                nested dicts and lists of them. uncond's tensors may be given once for all samples. A list of dicts as cond
                is several conditions; ``pfc.CFG(..., weights=...)`` weighs them.
            shared: keyword arguments that both branches get as they are.
            guidance_scale: overrides the guidance's scale for this call: a number, one per sample, or a function of t.
            device: default x0's, else cond's, else the seeds', else that of the field's parameters.
            dtype: of the state, float32 or float64; default float64 for a float64 x0, else float32.
            enable_grad: gradients through the whole solve (in x0, the field's parameters, cond and the guidance scale).
            callback: ``callback(step, nfe, t, x, denoised)`` once a step, after it: the step from 0, evaluations so far,
                the time reached, the state there (the buffer itself: read only; clone what you keep), and the data as predicted
                by the step's last evaluation (None where its prediction does not determine it).
            progress: a tqdm bar.
            return_trajectory: a :class:`Trajectory` with the state at every grid point in place of the samples.

        Returns:
            x1 [B, *shape] in the state's dtype, or the Trajectory.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        facts = as_field(field)
        self._check_field(facts)
        several = branches.conditions_of(cond)
        cond, uncond, shared = several[0], _mapping(uncond, "uncond"), _mapping(shared, "shared")
        guided = branches.guided(self.guidance, several, uncond)
        weak = self.guidance.weak if guided and self.guidance is not None else None
        if weak is not None:
            self._check_field(weak, "weak: ")
        seeds_have_device = isinstance(seeds, Tensor)
        seeds = seeds_once(seeds)
        if both := sorted(set(cond) & set(shared)):
            raise ValueError(f"shared and cond both have {', '.join(both)}")
        if x0 is None and seeds is None and batch is None:
            batch = conditions.batch_of(cond)
        if device is None and x0 is None and (tensor := conditions.first_tensor(cond)) is not None:
            device = tensor.device
        if device is None and x0 is None and not seeds_have_device:
            device = facts.device()
        count = len(x0) if isinstance(x0, Tensor) and x0.dim() else None
        doubled, split = branches.batches(
            self.branches,
            several,
            uncond,
            guided,
            count if count is not None else count_of(seeds, batch),
            weak,
        )
        run = self._start(
            facts, x0=x0, shape=shape, seeds=seeds, batch=batch, guided=guided, guidance_scale=guidance_scale,
            device=device, dtype=dtype, enable_grad=enable_grad, stacked=doubled is not None,
            keep_points=callback is not None, several=len(several),
        )  # fmt: skip
        other = facts if weak is None else weak
        times = None if weak is None else self._times(weak, run.buffers.x, [1] * len(self.plan.facts), False)
        evaluate = branches.evaluator(facts, doubled, several, split, shared, other, times)
        with torch.set_grad_enabled(enable_grad):
            return self._drive(run, facts, evaluate, callback, progress, return_trajectory)

    # ------------------------------------------------------------------------------------------------------ parts
    def _check_field(self, field: Field, whose: str = "") -> None:
        if field.prediction != self.plan.prediction:
            raise ValueError(
                f"{whose}prediction: the plan is for {self.plan.prediction!r}, the field predicts {field.prediction!r}"
            )
        if field.path != self.plan.path:
            raise ValueError(
                f"{whose}path: the plan is for {self.plan.path}, the field was trained on {field.path}"
            )

    def _start(
        self, field: Field, *, x0: Tensor | None, shape: Sequence[int] | None, seeds: Tensor | None,
        batch: int | None, guided: bool, guidance_scale: Scale | None, device: torch.device | str | None,
        dtype: torch.dtype | None, enable_grad: bool, stacked: bool, keep_points: bool = False,
        several: int | None = None,
    ) -> Run:  # fmt: skip
        state, keys = initial_state(self.plan, x0, shape, seeds, batch, device, dtype, enable_grad)
        counts, guidance = branches.scales_of(
            self.plan, self.guidance, state, guided, guidance_scale, enable_grad, several
        )
        table = branches.table_of(self.plan, field.sign, counts)
        guide = guide_for(self.plan, self.guidance, field.sign, counts, guidance, state)
        times = self._times(field, state, counts, stacked)
        return Run(
            self.plan, table, state, branches=counts, stacked=stacked, times=times, dtype=field.dtype or state.dtype,
            guidance=guidance, seeds=keys, differentiable=enable_grad, keep_points=keep_points, guide=guide,
        )  # fmt: skip

    def _times(self, field: Field, state: Tensor, counts: list[int], stacked: bool) -> list[Tensor]:
        """The network's time of every row, computed in float64 and cast once."""
        mapped = field.map_times(self.plan.row_times)
        mapped = mapped.to(device=state.device, dtype=state.dtype)
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
        table = denoise_table(self.plan, field.sign) if callback is not None else None
        bar = _progress_bar(self.plan.steps) if progress else None
        states = [run.buffers.x.clone()] if return_trajectory else []
        denoised: Tensor | None = None

        def on_step(row: int) -> None:
            index = self.plan.facts[row].step
            if callback is not None:
                x = run.buffers.x
                before = version_of(x)
                callback(index, run.nfe, self.plan.times[index + 1], x, denoised)
                if version_of(x) != before:
                    raise ValueError(
                        "callback wrote into x, the trajectory's own buffer; it may read it, or clone it"
                    )
            if bar is not None:
                bar.update()
            if return_trajectory:
                states.append(run.buffers.x.clone())

        if callback is not None or bar is not None or return_trajectory:
            run.on_step = on_step
        run.advance_silent()
        last = _last_evaluations(self.plan) if table is not None else set()
        try:
            for step in run:
                out, uncond = evaluate(step)
                if table is not None and step.row in last:
                    denoised = run.denoised(out, uncond, table)
                run.step(out, uncond)
        finally:
            if bar is not None:
                bar.close()
        if return_trajectory:
            return Trajectory(torch.tensor(self.plan.times, dtype=torch.float64), torch.stack(states))
        return run.x


def _last_evaluations(plan: Plan) -> set[int]:
    """The rows that make the last evaluation of a step; rows without one may follow before the step is complete."""
    last: set[int] = set()
    latest: int | None = None
    for i, row in enumerate(plan.facts):
        latest = i if row.evaluates else latest
        if row.completes_step and latest is not None:
            last.add(latest)
    return last


def _no_net(x: Tensor, t: Tensor) -> Tensor:
    raise RuntimeError("this run was started without a field: its caller evaluates the network")


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
