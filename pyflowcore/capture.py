"""CapturedRun: a whole trajectory as one CUDA graph, replayed with new inputs in the memory that it was captured with."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import branches, conditions
from ._library import PyflowcoreWarning
from .calls import weak_of
from .field import Field
from .initial import Begin, seeds_once, start_of
from .prepare.field import PreparedField
from .scales import Scale

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = ["CapturedRun"]


class CapturedRun:
    """A trajectory with memory of its own, from ``sampler.capture(...)``; the one object here that changes while it samples::

        graph = sampler.capture(field, shape=(4, 64, 64), batch=8, cond={"y": labels}, uncond={"y": null})
        x1 = graph(seeds=range(8), cond={"y": other_labels}, guidance_scale=3.0)
        graph(seeds=more, out=x1)

    Ownership. The object owns the start, the seeds, the guidance scales, the conditions (copies of the example's tensors),
    everything that the trajectory works on, and ``x``, the samples, which the next call overwrites. A call copies its arguments
    into them and hands out a copy of ``x``, so nothing that the caller has is ever kept. ``shared`` and the field's parameters
    are not copied: the graph reads them where they lay when it was captured, so they may be written in place, and must not be
    moved or freed. One call at a time: a second thread is refused. A call works on the current stream of the device, and one
    on another stream waits for it.

    Attributes:
        captured: True where a CUDA graph is replayed; False on other devices, where the same trajectory runs eagerly.
        x: the samples of the last call [B, *shape].
        plan, shape, batch, device, dtype: of the trajectory.
    """

    def __init__(
        self, sampler: Sampler, field: Field, *, shape: Sequence[int], batch: int, several: list[dict[str, Any]],
        uncond: dict[str, Any], shared: dict[str, Any], guidance_scale: Scale | None, device: torch.device,
        dtype: torch.dtype, warmup: int,
    ) -> None:  # fmt: skip
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
            raise ValueError(f"warmup must be a positive number of trajectories, got {warmup!r}")
        # The buffers are ordinary tensors wherever they are made, so that every later call may write them.
        with torch.inference_mode(False), torch.no_grad():
            self._make(
                sampler, field, shape, batch, several, uncond, shared, guidance_scale, device, dtype, warmup
            )

    def _make(
        self, sampler: Sampler, field: Field, shape: Sequence[int], batch: int, several: list[dict[str, Any]],
        uncond: dict[str, Any], shared: dict[str, Any], guidance_scale: Scale | None, device: torch.device,
        dtype: torch.dtype, warmup: int,
    ) -> None:  # fmt: skip
        plan = sampler.plan.on(field.path, field.prediction)
        self.plan, self.shape, self.batch = plan, tuple(shape), batch
        self.device, self.dtype = device, dtype
        self._guidance = sampler.guidance
        self._field, self._shared = field, shared
        self._several, self._uncond, self._places = _copies(several, uncond, batch)
        self._guided = branches.guided(sampler.guidance, several, uncond)
        self._weak = weak_of(sampler.plan, sampler.guidance, self._guided)
        doubled, _ = branches.batches(
            sampler.branches, self._several, self._uncond, self._guided, batch, self._weak
        )
        self._how = "calls" if doubled is None else "batch"

        self._x0 = torch.zeros((batch, *self.shape), dtype=dtype, device=device)
        self._seeds = torch.arange(batch, dtype=torch.int64, device=device)
        begin = Begin(x0=self._x0, seeds=self._seeds, device=device, dtype=dtype)
        self._run = sampler._start(
            field, begin, guided=self._guided, guidance_scale=guidance_scale, enable_grad=False,
            stacked=doubled is not None, scale_per_sample=True, several=len(several),
        )  # fmt: skip
        self._weak_times = sampler._weak_times(self._weak, self._x0)
        self._row_times = sampler._row_times(
            field, self._x0
        )()  # on the device: a captured region takes no copy to it
        self._branches, self._scales = self._run.branches, self._run.guidance
        self._lock = threading.Lock()
        self._graph: torch.cuda.CUDAGraph | None = None
        self.captured = device.type == "cuda"
        if self.captured:
            self._capture(warmup)
        else:
            warnings.warn(
                f"there are no CUDA graphs on '{device}': the captured trajectory runs eagerly there, in the same buffers",
                PyflowcoreWarning,
                stacklevel=4,
            )
        self.x = self._run.buffers.result()

    def __repr__(self) -> str:
        return (
            f"CapturedRun({self.plan!r}, batch={self.batch}, shape={self.shape}, device='{self.device}', "
            f"captured={self.captured})"
        )

    def __call__(
        self,
        *,
        seeds: Iterable[int] | Tensor | None = None,
        x0: Tensor | None = None,
        init: Tensor | None = None,
        cond: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        uncond: dict[str, Any] | None = None,
        guidance_scale: Scale | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Samples, to the bits of the sampler's own call.

        Args:
            seeds, x0, init: as the sampler's; without any, seeds from torch's generator.
            cond, uncond: of the example's structure, shapes (or shapes that broadcast to them) and dtypes; what is not a tensor
                must be as it was. Left out, the last call's stay.
            guidance_scale: left out, the last call's stays. A row keeps the branches that it was captured with, so a scale of 1
                saves no evaluation, and a row captured outside the interval, or at scale 1, cannot be guided.
            out: receives the samples [B, *shape]; else a new tensor does.

        Arguments that are on the device already cost no synchronisation.

        Raises:
            TypeError, ValueError: an argument that does not fit what was captured, by name; nothing has run then.
            RuntimeError: another thread is inside a call.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this captured trajectory is in use by another thread; capture one for each")
        try:
            with torch.no_grad():
                return self._call(seeds_once(seeds), x0, init, cond, uncond, guidance_scale, out)
        finally:
            self._lock.release()

    def _call(
        self, seeds: Tensor | None, x0: Tensor | None, init: Tensor | None,
        cond: dict[str, Any] | Sequence[dict[str, Any]] | None, uncond: dict[str, Any] | None,
        guidance_scale: Scale | None, out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if out is not None:
            _check_like(out, self.x, "out")
        copies = _new_values(self._several, self._uncond, cond, uncond)
        _check_shared(copies, self._places)
        if self._graph is not None:
            torch.cuda.current_stream(self.device).wait_event(self._done)
        # From here on the buffers are written; everything is checked before.
        start = self._start(seeds, x0, init)
        if guidance_scale is not None:
            self._set_scale(guidance_scale)
        self._x0.copy_(start.state)
        if start.seeds is not None:
            self._seeds.copy_(start.seeds)
        for mine, given in copies:
            mine.copy_(given)
        if self._graph is None:
            self._trajectory()
        else:
            self._graph.replay()
        result = self.x.clone() if out is None else out.copy_(self.x)
        if self._graph is not None:
            self._done.record(torch.cuda.current_stream(self.device))
        return result

    # ------------------------------------------------------------------------------------------------------ parts
    def _trajectory(self) -> None:
        """What is captured: from the fixed buffers to the samples."""
        run, several = self._run, self._several
        doubled, split = branches.batches(
            self._how, several, self._uncond, self._guided, self.batch, self._weak
        )
        evaluate = branches.evaluator(
            self._field,
            doubled,
            several,
            split,
            self._shared,
            self._weak or self._field,
            self._weak_times,
            lambda: self._row_times,
        )
        run.begin(self._x0)
        for step in run:
            run.step(*evaluate(step))

    def _capture(self, warmup: int) -> None:
        """Warm-up on a side stream, as capture wants it (libraries initialise there), then the capture."""
        with torch.cuda.device(self.device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(warmup):
                    self._trajectory()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self._trajectory()
            self._graph, self._done = graph, torch.cuda.Event()
            # The graph knows addresses alone; what the field makes of its weights it may make anew and let go.
            self._read = self._field.held() if isinstance(self._field, PreparedField) else ()
            self._done.record(current)

    def _start(self, seeds: Tensor | None, x0: Tensor | None, init: Tensor | None) -> Any:
        """The start as the sampler makes it, checked against the buffers."""
        shape = self.shape if x0 is None and init is None else None
        begin = Begin(x0, shape, init, seeds, None, self.device, self.dtype)
        given = begin.given()
        if isinstance(given, Tensor):
            _check_shape(given, self._x0, "x0" if x0 is not None else "init")
        elif seeds is None:
            begin.batch = self.batch
        elif len(seeds) != self.batch:
            raise ValueError(f"seeds has {len(seeds)} entries, captured were {self.batch} samples")
        return start_of(self.plan, begin, enable_grad=False)

    def _set_scale(self, scale: Scale) -> None:
        if self._scales is None:
            raise ValueError("guidance_scale is given, but no row was captured with two branches")
        wanted, values = branches.scales_of(
            self.plan, self._guidance, self._x0, True, scale, False, len(self._several)
        )
        for row, (new, old) in enumerate(zip(wanted, self._branches, strict=True)):
            if new > old:
                raise ValueError(
                    f"guidance_scale guides row {row} (t = {self.plan.facts[row].t}), which was captured with one branch; "
                    "capture with a scale that guides it"
                )
        if values is None:
            self._scales.fill_(1.0)
        else:
            self._scales.copy_(values)


def _new_values(
    several: list[dict[str, Any]], uncond: dict[str, Any], new_cond: Any, new_uncond: Any
) -> list[Any]:
    """(buffer, new value) for every tensor of the conditions that are given."""
    pairs = []
    if new_cond is not None:
        given = branches.conditions_of(new_cond)
        if len(several) == 1 and len(given) == 1:
            pairs += _pairs(several[0], given[0], "cond")
        else:
            pairs += _pairs(several, given, "cond")
    if new_uncond is not None:
        if not isinstance(new_uncond, dict):
            raise TypeError(
                f"uncond must be a dict of the field's keyword arguments, got {type(new_uncond).__name__}"
            )
        pairs += _pairs(uncond, new_uncond, "uncond")
    return pairs


def _copies(several: Any, uncond: Any, batch: int) -> tuple[Any, Any, dict[int, int]]:
    """The same conditions with tensors of their own, and in how many places each of those stands, by its id.

    A tensor without the batch dimension stays one where branches share it: that is why they fit into one batch.
    """
    made: dict[int, Tensor] = {}
    places: dict[int, int] = {}

    def copy(tensor: Tensor) -> Tensor:
        mine = made.get(id(tensor))
        if mine is None or (tensor.dim() > 0 and tensor.shape[0] == batch):
            mine = made[id(tensor)] = tensor.detach().clone()
        places[id(mine)] = places.get(id(mine), 0) + 1
        return mine

    return conditions.map_tensors(several, copy), conditions.map_tensors(uncond, copy), places


def _check_shared(pairs: list[tuple[Tensor, Tensor]], places: dict[int, int]) -> None:
    """One buffer for several branches takes one value, given to all of them."""
    given: dict[int, list[tuple[Any, ...]]] = {}
    for mine, value in pairs:
        given.setdefault(id(mine), []).append((value.data_ptr(), value.stride(), value.device))
    for key, values in given.items():
        if len(values) != places[key] or any(value != values[0] for value in values):
            raise ValueError(
                "cond, uncond: a tensor without the batch dimension was captured as one for several branches, so a new one "
                "must be given to each of them, the same tensor"
            )


def _pairs(mine: Any, given: Any, where: str) -> list[tuple[Tensor, Tensor]]:
    """(buffer, new value) for every tensor of a tree; the rest must be as it was captured."""
    if isinstance(mine, Tensor):
        if not isinstance(given, Tensor):
            raise TypeError(f"{where} must be a tensor, as it was captured, got {type(given).__name__}")
        if given.dtype != mine.dtype:
            raise TypeError(f"{where} is {given.dtype}, captured was {mine.dtype}")
        try:
            return [(mine, given.expand(mine.shape))]
        except RuntimeError:
            raise ValueError(
                f"{where} has shape {list(given.shape)}, captured was {list(mine.shape)}"
            ) from None
    if isinstance(mine, dict) and isinstance(given, dict):
        if mine.keys() != given.keys():
            raise ValueError(f"{where} has the keys {sorted(given)}, captured were {sorted(mine)}")
        return [pair for key in mine for pair in _pairs(mine[key], given[key], f"{where}[{key!r}]")]
    if isinstance(mine, (list, tuple)) and isinstance(given, (list, tuple)):
        if len(mine) != len(given):
            raise ValueError(f"{where} has {len(given)} entries, captured were {len(mine)}")
        pairs = enumerate(zip(mine, given, strict=True))
        return [pair for i, (a, b) in pairs for pair in _pairs(a, b, f"{where}[{i}]")]
    if not conditions.equal(mine, given):
        raise ValueError(f"{where} was captured as {mine!r} and cannot change, got {given!r}")
    return []


def _check_shape(given: Tensor, mine: Tensor, name: str) -> None:
    if given.shape != mine.shape:
        raise ValueError(f"{name} has shape {list(given.shape)}, captured was {list(mine.shape)}")


def _check_like(given: object, mine: Tensor, name: str) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    _check_shape(given, mine, name)
    if given.dtype != mine.dtype or given.device != mine.device:
        raise ValueError(
            f"{name} is {given.dtype} on {given.device}, the samples are {mine.dtype} on {mine.device}"
        )
