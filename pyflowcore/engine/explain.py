"""explain(): what a call of a sampler runs, and on what; and why a call is not for the engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .. import _library
from ..branches import scales_of
from ..calls import Call
from ..fuse import FusedField
from ..prepare.field import PreparedField
from ..prepare.products import LEAST_OPERATIONS

__all__ = ["Explanation", "explain", "obstacles"]


@dataclass(frozen=True)
class Explanation:
    """What a call runs; print it.

    Attributes:
        engine: "engine", one operator for the whole trajectory, or "loop", the field evaluated row by row.
        operators: of torch.ops.pyflowcore, those that run.
        device: type of the state's device; ``kernels``: what serves it: the CPU's instruction set, "CUDA" or "plain PyTorch".
        dtype: of the state; ``precision``: "exact", "tf32" or "bf16", of the network's products.
        rows, nfe: of the plan, and how many of its rows evaluate the field here.
        branches: {branches: rows} of the evaluating rows.
        parts: (what, where it runs).
        reasons: why it is not the engine; empty if it is.
    """

    engine: str
    operators: tuple[str, ...]
    device: str
    kernels: str
    dtype: torch.dtype
    precision: str
    rows: int
    nfe: int
    branches: dict[int, int]
    parts: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        taken = ", ".join(
            f"{_counted(n, 'branch', 'branches')} in {_counted(count, 'row')}"
            for n, count in sorted(self.branches.items())
        )
        what = "one operator call for the whole trajectory" if self.engine == "engine" else "row by row"
        lines = [
            ("runs in", f"the {self.engine}: {what}"),
            *(("because", reason) for reason in self.reasons),
            ("operators", ", ".join(self.operators)),
            ("state", f"{str(self.dtype).removeprefix('torch.')} on {self.device}, kernels: {self.kernels}"),
            ("rows", f"{self.rows}, {_counted(self.nfe, 'evaluation')} ({taken or 'none'})"),
            *self.parts,
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def obstacles(call: Call) -> tuple[str, ...]:
    """Why a call runs in the loop; empty where the engine takes it. Nothing is evaluated but the time map, where its result may
    have a gradient."""

    field, guidance = call.field, call.guidance
    if not isinstance(field, FusedField):
        return (f"the field is {_named(field)}; the engine is for fields made by pfc.fuse",)
    found = []
    if torch.compiler.is_compiling():
        found.append("torch.compile traces the loop")
    elif torch._C._are_functorch_transforms_active():
        found.append("a transform of torch.func is active")
    for name, value in (("hook", call.hook), ("mask", call.mask), ("callback", call.callback)):
        if value is not None:
            found.append(f"{name} wants the state at the grid points, outside the operator")
    if call.progress:
        found.append("progress is shown step by step")
    if call.begin.noise is not None:
        found.append("noise is given; the engine draws from seeds")
    if call.guided and guidance is not None:
        if call.weak is not None:
            found.append("guidance evaluates a second field")
        if guidance.by_sample:
            found.append("the weights of guidance depend on the samples")
    if call.enable_grad and not torch.compiler.is_compiling():
        if call.plan.table.requires_grad or call.plan.row_times.requires_grad:
            found.append("the plan's coefficients or times have a gradient")
        elif field.time is not None and _times_learn(call):
            found.append("the field's time map has a gradient")
    dtype = _dtype(call)
    if field.dtype not in (None, dtype):
        found.append(f"the field's input is {field.dtype}, the state {dtype}")
    if (why := _without_kernels(_device(call))) is not None:
        found.append(why)
    return tuple(found)


def _times_learn(call: Call) -> bool:
    with torch.enable_grad():
        return call.field.map_times(call.plan.row_times).requires_grad


def _without_kernels(kind: str) -> str | None:
    backend = {"cpu": _library.cpu, "cuda": _library.cuda}.get(kind)
    if backend is None:
        return f"there are no compiled kernels for '{kind}'"
    return None if backend.live else f"the compiled kernels for '{kind}' are off: {backend.reason}"


def _device(call: Call) -> str:
    """The type of the state's device."""
    begin = call.begin
    device = begin.device
    if device is None:
        given = begin.given() if begin.given() is not None else begin.seeds
        device = given.device if isinstance(given, Tensor) else "cpu"
    return device.type if isinstance(device, torch.device) else torch.device(device).type


def _dtype(call: Call) -> torch.dtype:
    """The state's."""
    given = call.begin.given()
    double = isinstance(given, Tensor) and given.dtype == torch.float64
    return call.begin.dtype or (torch.float64 if double else torch.float32)


def explain(call: Call, apart: bool = False) -> Explanation:
    """Of a call that was read; ``apart``: the sampler evaluates the branches of guidance one after another."""
    reasons = obstacles(call)
    kind, dtype, plan = _device(call), _dtype(call), call.plan
    compiled = _without_kernels(kind) is None
    kernels = {"cpu": str(_library.cpu_isa()), "cuda": "CUDA"}[kind] if compiled else "plain PyTorch"
    counts = _counts(call)
    taken = Counter(n for n, row in zip(counts, plan.facts, strict=True) if row.evaluates and n)
    guided = max(taken, default=1) > 1
    operators, parts = (
        _loop_parts(call, kernels, guided, apart) if reasons else _engine_parts(call, kernels, guided)
    )
    precision = {"tf32": "tf32", "bfloat16": "bf16"}.get(getattr(call.field, "precision", ""), "exact")
    return Explanation(
        "loop" if reasons else "engine", operators, kind, kernels, dtype, precision, len(plan.facts), sum(taken.values()),
        dict(taken), parts, reasons,
    )  # fmt: skip


_Parts = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]


def _engine_parts(call: Call, kernels: str, guided: bool) -> _Parts:
    field = cast("FusedField", call.field)
    widths = [int(field.layers[0, 0]), *field.layers[:, 1].int().tolist()]
    inside = f"inside trajectory ({kernels})"
    dtype = str(_dtype(call)).removeprefix("torch.")
    precision = f"{dtype} exact" if field.precision == "float32" else field.precision
    parts = [
        ("network", f"{inside}, {' -> '.join(map(str, widths))}, {precision}"),
        ("time features", f"{inside}, {len(field.features)}, once a row"),
        ("rows", f"{inside}, state and {_counted(call.plan.slots, 'slot')}"),
    ]
    if guided:
        parts.append(("guidance", inside))
    if call.plan.draws:
        parts.append(("noise", f"{inside}, from seeds"))
    if call.enable_grad:
        parts.append(("gradient", "the module once more at every kept point, one row at a time"))
    return ("trajectory",), tuple(parts)


def _loop_parts(call: Call, kernels: str, guided: bool, apart: bool) -> _Parts:
    fused = isinstance(call.field, FusedField)
    combine = "combine" if call.enable_grad else "combine_"
    operators = [combine]
    products = ""
    where = "the caller's, called for every evaluation"
    if fused:
        operators.append("network")
        where = f"network ({kernels}), called for every evaluation"
        if call.enable_grad:
            where = "the module, called for every evaluation"
    if isinstance(call.field, PreparedField):
        packed = call.field.net.packed
        name = type(packed.source).__name__
        if call.enable_grad:
            where = f"the {name} itself, called for every evaluation, because a gradient is wanted"
        elif call.guided and (apart or call.weak is not None):
            where = f"prepared {name}, what depends on time and condition once an evaluation, since branches are called apart"
            operators += packed.operators
        else:
            where = f"prepared {name}, what depends on time and condition once for all rows"
            operators += packed.operators
        if not call.enable_grad:
            packed.follow()  # the weights may have moved
            reason, least = packed.products.reason, LEAST_OPERATIONS >> 20
            products = f"oneDNN's on packed weights, from {least} million operations on; below, PyTorch's"
            if reason:
                products = f"PyTorch's, since {reason}"
    parts = [
        ("network", where),
        *([("products", products)] if products else []),
        ("rows", f"{combine} ({kernels}), state and {_counted(call.plan.slots, 'slot')}"),
    ]
    if guided:
        weighed = call.guidance is not None and call.guidance.by_sample
        if weighed and not call.enable_grad:
            operators += ["guide_", "combine_mixed_"]
        parts.append(("guidance", f"guide_, combine_mixed_ ({kernels})" if weighed else f"inside {combine}"))
    if call.plan.draws:
        given = call.begin.noise is not None
        parts.append(("noise", "given" if given else f"inside {combine}, from seeds"))
    if call.enable_grad:
        parts.append(("gradient", "autograd through every row; the field's activations are kept"))
    return tuple(operators), tuple(parts)


def _counts(call: Call) -> list[int]:
    """Of each row: how many branches of the field it takes."""
    plan, batch = call.plan.on(call.field.path, call.field.prediction), call.batch()
    if batch is None and call.guided and call.guidance is not None:
        # How many samples there are is not said yet, so a scale for each may be of any number.
        times = [row.t if row.evaluates else None for row in plan.facts]
        return call.guidance.rows(times, None, call.guidance_scale, len(call.several))[0]
    state = torch.empty(batch or 0, dtype=_dtype(call))
    return scales_of(plan, call.guidance, state, call.guided, call.guidance_scale, False, len(call.several))[
        0
    ]


def _counted(count: int, word: str, words: str = "") -> str:
    return f"{count} {word if count == 1 else words or word + 's'}"


def _named(field: object) -> str:
    net = getattr(field, "net", field)
    name = type(net).__name__ if isinstance(net, torch.nn.Module) else getattr(net, "__name__", "")
    return f"{name or type(net).__name__}, called as it is"
