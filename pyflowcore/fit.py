"""fit_plan: a plan's coefficients and times, optimised for one field, so that few evaluations come close to many.

The family is that of ``bns.py``. The optimisation runs through the differentiable sampler itself: Field facts, guidance and
conditions are those of sampling, and the gradient is ``combine``'s in its table and the field's in its time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import bns, grids
from ._library import PyflowcoreWarning
from .building import plan
from .field import Field, as_field
from .fit_data import Pairs, make_pairs
from .guidance import CFG
from .plans import Plan
from .sampler import Sampler

__all__ = ["Fit", "fit_plan"]

GridLike = grids.Grid | str | Sequence[float] | npt.NDArray[np.float64]

# The solvers that init="best" compares: their evaluation times increase.
_CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("midpoint", {}), ("ralston2", {}), ("heun3", {}), ("bosh3", {}), ("ab2", {}), ("ab3", {}), ("ab4", {}), ("ddim", {}),
    ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("unipc", {"order": 2}), ("unipc", {"order": 3}), ("deis", {"order": 2}),
    ("deis", {"order": 3}), ("res", {"order": 2}), ("res", {"order": 3}),
)  # fmt: skip
_LOSSES = ("log_mse", "log_each")


@dataclass(frozen=True)
class Fit:
    """What :func:`fit_plan` found. Errors are root mean squares over the elements of the validation pairs.

    Attributes:
        plan: the learned plan, with the least validation error that was seen; ``plan.to_json()`` saves it.
        error, iteration: that error, and the iteration it was found in; 0 is the start.
        init: the plan it began with, init_error its error.
        history: (iteration, validation error) of every validation.
        solvers: with ``init="best"`` the validation error of every classical solver that was compared.
    """

    plan: Plan
    error: float
    iteration: int
    init: Plan
    init_error: float
    history: tuple[tuple[int, float], ...]
    solvers: dict[str, float]

    def __str__(self) -> str:
        return (
            f"{self.plan.nfe} evaluations: validation error {self.error:.4g} after {self.iteration} iterations, "
            f"from {self.init_error:.4g} with {self.init.solver}"
        )


def fit_plan(
    field: Field | Callable[..., Tensor],
    *,
    nfe: int | None = None,
    teacher: Plan | str | tuple[Tensor, Tensor] = "ab4",
    init: Plan | str = "best",
    grid: GridLike | None = None,
    shape: Sequence[int] | None = None,
    x0: Tensor | None = None,
    samples: int | None = None,
    validation: int | None = None,
    cond: dict[str, Any] | Callable[[Tensor], dict[str, Any]] | None = None,
    uncond: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    guidance: CFG | None = None,
    branches: str = "batch",
    batch: int = 128,
    iterations: int = 600,
    lr: float = 5e-3,
    loss: str = "log_mse",
    learn_times: bool = True,
    every: int = 25,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    callback: Callable[[int, float, float], object] | None = None,
) -> Fit:
    """Optimises a bespoke non-stationary solver (Shaul et al. 2024, arXiv:2403.01329) for a field.

    After each evaluation f_j at (y_j, t_j) the next point is a free combination y_{i+1} = a_i x_0 + sum_j b_ij f_j, and the
    times are free as well: n (n + 5) / 2 - 1 numbers for n evaluations, which Adam fits to a teacher's samples from the same
    noise. The result is an ordinary plan of n rows and n - 1 slots, for fields with these facts and this guidance.

    Args:
        field: a ``pfc.Field`` or a callable, differentiable in x and t. Its parameters are not changed and get no gradient;
            dropout and the like are the caller's to switch off.
        nfe: the evaluations, 2 to 16; default 8, or those of ``init`` if it is a plan.
        teacher: what is imitated: a deterministic plan, a solver's name (200 steps of it; default "ab4", whose stages avoid
            t = 1), or given pairs (x0, x1) of tensors [N, ...].
        init: where the optimisation starts: a plan or a solver's name, whose evaluation times must increase; "best" compares
            the classical ones on the validation pairs.
        grid: of init and teacher, as in :func:`pyflowcore.plan`.
        shape: of one sample, where neither x0 nor pairs are given: the noise is then ``pfc.randn`` of seeds from ``seed``.
        x0: starts [N, ...] for the teacher, at the grid's first time.
        samples, validation: numbers of pairs to train on and to judge by, default 512 each; of given pairs, or x0, the last
            ``validation`` (default a quarter) are held out.
        cond: the field's keyword arguments for all N pairs, or a function from the pairs' int64 seeds [N] to them. Every tensor
            has N rows.
        uncond, shared, guidance, branches: as the Sampler's. uncond's tensors may be given once for all.
        batch: pairs in an iteration. The solve is differentiated as a whole: nfe evaluations of the field are held in memory.
        iterations, lr: of Adam; the rate falls to 0 as a cosine.
        loss: "log_mse", the logarithm of the batch's mean square error, or "log_each", the mean of each sample's, which is the
            paper's (minus its PSNR); the first weighs samples by their error, and so lowers the root mean square further.
        learn_times: False keeps the times of ``init``.
        every: iterations between validations; the best plan seen at one is the result.
        patience: stop after this many validations without a new best; default never.
        seed: of the noise and of the order of the pairs: the result is a function of the arguments.
        device, dtype: as the Sampler's.
        callback: ``callback(iteration, loss, validation error)`` at every validation.

    Raises:
        TypeError, ValueError: naming the argument: an init whose evaluations differ from nfe or whose times do not increase, a
            teacher that draws noise or goes between other times, pairs that do not fit, a field without a gradient in x.

    Warns:
        PyflowcoreWarning: the field has no gradient in t, so that the times stay; a loss that is not finite ends the fit early.
    """
    facts = as_field(field)
    nfe = _check_nfe(nfe, init)
    _check_numbers(batch=batch, iterations=iterations, every=every, patience=patience, seed=seed)
    if not (isinstance(lr, (int, float)) and math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}")
    given = None if init == "best" else _init_plan(init, nfe, grid, facts, {})
    pairs = make_pairs(
        facts, teacher, grid=grid, shape=shape, x0=x0, samples=samples, validation=validation, cond=cond, uncond=uncond,
        shared=shared, guidance=guidance, branches=branches, batch=batch, seed=seed, device=device, dtype=dtype,
    )  # fmt: skip
    student = _Student(facts, pairs, guidance, branches, batch)
    solvers: dict[str, float] = {}
    if given is None:
        given, solvers = _best(student, nfe, grid, facts)
    pairs.check_times(given.times[0], given.times[-1])
    learn_times = _has_time_gradient(facts, pairs, given, learn_times)
    return _optimise(
        student, given, solvers, iterations=iterations, lr=lr, loss=loss, learn_times=learn_times, every=every,
        patience=patience, seed=seed, callback=callback,
    )  # fmt: skip


class _Student:
    """Solves pairs by a plan, with the facts of sampling: gradients where asked for."""

    def __init__(self, field: Field, pairs: Pairs, guidance: CFG | None, branches: str, batch: int) -> None:
        self.pairs, self.batch = pairs, batch
        self._field, self._guidance, self._branches = field, guidance, branches

    def squares(self, solver: Plan, index: Tensor, enable_grad: bool = False) -> Tensor:
        """The mean square error of each sample, float64."""
        sampler = Sampler(solver, self._guidance, branches=self._branches)
        x1 = self.pairs.solve(sampler, self._field, index, enable_grad)
        away = x1.double() - self.pairs.x1[index].double()
        return away.square().flatten(1).mean(1)

    def error(self, solver: Plan) -> float:
        """Root mean square over the validation pairs; infinite where a sample is not finite."""
        total = [self.squares(solver, index) for index in self.pairs.held_out.split(self.batch)]
        value = float(torch.cat(total).mean().sqrt())
        return value if math.isfinite(value) else math.inf


def _optimise(
    student: _Student, init: Plan, solvers: dict[str, float], *, iterations: int, lr: float, loss: str, learn_times: bool,
    every: int, patience: int | None, seed: int, callback: Callable[[int, float, float], object] | None,
) -> Fit:  # fmt: skip
    start = bns.unroll(init)
    steps = start.times.diff()
    a, b, logits = start.a.clone(), start.b.clone(), (steps / steps.sum()).log()
    learned = [a, b, logits] if learn_times else [a, b]
    for parameter in learned:
        parameter.requires_grad_()

    def coefficients() -> bns.Coefficients:
        if not learn_times:
            return bns.Coefficients(start.times, a, b)
        # Softmax keeps the steps positive; both ends stay where they are, to the bit.
        inside = start.times[0] + steps.sum() * torch.softmax(logits, 0).cumsum(0)[:-1]
        return bns.Coefficients(torch.cat([start.times[:1], inside, start.times[-1:]]), a, b)

    optimizer = torch.optim.Adam(learned, lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    order = _Order(student.pairs.training, student.batch, seed)
    best, best_at = bns.to_plan(start, init), 0
    init_error = best_error = student.error(best)
    history, value = [(0, init_error)], math.nan
    if callback is not None:
        callback(0, value, init_error)
    for iteration in range(1, iterations + 1):
        with torch.enable_grad():
            squares = student.squares(_learning(init, coefficients()), order.next(), enable_grad=True)
            squares = squares if loss == "log_each" else squares.mean()[None]
            # An error of exactly 0 has no logarithm.
            lost = squares.clamp_min(torch.finfo(torch.float64).tiny).log().mean()
            # Not backward(): the field's own parameters get no gradient.
            gradients = torch.autograd.grad(lost, learned)
        value = lost.item()
        if not all(bool(g.isfinite().all()) for g in (lost, *gradients)):
            warnings.warn(
                f"fit_plan: the loss or its gradient is not finite in iteration {iteration}; the best plan until then, of "
                f"iteration {best_at}, is the result. A smaller lr may help (it is {lr:g})",
                PyflowcoreWarning,
                stacklevel=3,
            )
            break
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
        if iteration % every and iteration != iterations:
            continue
        with torch.no_grad():
            found = bns.to_plan(coefficients(), init)
        error = student.error(found)
        history.append((iteration, error))
        if callback is not None:
            callback(iteration, value, error)
        if error < best_error:
            best, best_error, best_at = found, error, iteration
        elif patience is not None and iteration - best_at >= patience * every:
            break
    return Fit(best, best_error, best_at, init, init_error, tuple(history), solvers)


def _learning(like: Plan, now: bns.Coefficients) -> Plan:
    """A plan whose table and times have a gradient; for one differentiable solve."""
    with torch.no_grad():
        plain = bns.to_plan(now, like)
    learning = object.__new__(Plan)
    learning.__dict__.update(plain.__dict__)
    learning.table = bns.table(now.a, now.b)
    learning.row_times = now.times[:-1]
    return learning


class _Order:
    """The pairs in a new order each time round, in batches; a last one that is too small is left out."""

    def __init__(self, index: Tensor, batch: int, seed: int) -> None:
        self._index, self._batch = index, min(batch, len(index))
        self._generator = torch.Generator().manual_seed(seed)
        self._left: list[Tensor] = []

    def next(self) -> Tensor:
        if not self._left:
            mixed = self._index[torch.randperm(len(self._index), generator=self._generator)]
            self._left = [part for part in mixed.split(self._batch) if len(part) == self._batch]
        return self._left.pop()


def _best(student: _Student, nfe: int, grid: GridLike | None, field: Field) -> tuple[Plan, dict[str, float]]:
    """The classical solver of this many evaluations with the least validation error, and the errors of all."""
    found: dict[str, tuple[float, Plan]] = {}
    refused: ValueError | None = None
    for name, options in _CANDIDATES:
        try:
            candidate = _init_plan(name, nfe, grid, field, options)
        except ValueError as error:  # an odd nfe, or a prediction that the solver cannot use on this grid
            refused = error
            continue
        label = f"{name}-{options['order']}" if options else name
        found[label] = student.error(candidate), candidate
    usable = {label: pair for label, pair in found.items() if math.isfinite(pair[0])}
    if not usable:
        raise ValueError(f"init: no classical solver can start the fit; the last refusal: {refused}")
    least = min(usable, key=lambda label: usable[label][0])
    return usable[least][1], {label: error for label, (error, _) in found.items()}


def _init_plan(
    init: Plan | str, nfe: int, grid: GridLike | None, field: Field, options: dict[str, Any]
) -> Plan:
    if isinstance(init, Plan):
        for name in ("path", "prediction"):
            if getattr(init, name) != getattr(field, name):
                raise ValueError(
                    f"init is for {name} {getattr(init, name)!r}, the field has {getattr(field, name)!r}"
                )
        if init.along != init.path:
            raise ValueError(
                f"init integrates along the {init.along.name} path; a learned plan goes along the field's own, {init.path.name}"
            )
        chosen = init
    elif isinstance(init, str):
        fixed = grids.get(grid).fixed_steps is not None
        count = None if fixed else nfe
        chosen = plan(init, nfe=count, grid=grid, path=field.path, prediction=field.prediction, **options)
    else:
        raise TypeError(f"init must be a pfc.Plan, a solver's name or 'best', got {type(init).__name__}")
    if chosen.nfe != nfe:
        raise ValueError(
            f"init: {chosen.solver!r} takes {chosen.nfe} evaluations here, nfe is {nfe}; they must be equal"
        )
    bns.unroll(chosen)  # refuses before any work is done
    return chosen


def _has_time_gradient(field: Field, pairs: Pairs, init: Plan, wanted: bool) -> bool:
    """Asks the field once. No gradient at all is refused; none in t is said, if it was wanted, and the times then stay."""
    index = pairs.training[:2]
    x = pairs.x0[index].clone().requires_grad_()
    t = torch.full((len(index),), init.times[0], dtype=x.dtype, device=x.device).requires_grad_()
    with torch.enable_grad():
        out = field(x, t, **pairs.arguments(index))
        if not out.requires_grad:
            raise ValueError(
                "field: its output has no gradient in x and t (torch.no_grad or a detach inside?)"
            )
        gradients = torch.autograd.grad(out.float().sum(), (x, t), allow_unused=True)
    in_x, in_t = (gradient is not None for gradient in gradients)
    if not (in_x or in_t):
        raise ValueError("field: its output has no gradient in x and t, only in its parameters")
    if wanted and not in_t:
        warnings.warn(
            "fit_plan: the field has no gradient in its time, so the times stay those of init; learn_times=False says so",
            PyflowcoreWarning,
            stacklevel=3,
        )
    return wanted and in_t


def _check_nfe(nfe: int | None, init: Plan | str) -> int:
    if nfe is None:
        nfe = init.nfe if isinstance(init, Plan) else 8
    count = _integer("nfe", nfe)
    if not 2 <= count <= 16:
        raise ValueError(f"nfe must lie in 2 to 16, got {count}")
    return count


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and _integer(name, value) < (least := 0 if name == "seed" else 1):
            raise ValueError(f"{name} must be an integer >= {least}, got {value}")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    return int(value)
