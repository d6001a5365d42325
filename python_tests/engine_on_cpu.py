"""The engine's CUDA kernels compiled for the CPU and run thread by thread: ``engine_on_cpu.cpp``, with tensors around it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from compiled import load
from torch import Tensor

from pyflowcore import _core

R = _core.record
SOURCE = Path(__file__).with_name("engine_on_cpu.cpp")
# Multiprocessors, bytes of shared memory of a block and of a multiprocessor.
DEVICES = {
    "H100": (132, 227 << 10, 228 << 10),
    "A100": (108, 163 << 10, 164 << 10),
    "RTX 5090": (170, 99 << 10, 100 << 10),
    "one of an H100": (1, 227 << 10, 228 << 10),
    "one of an RTX 5090": (1, 99 << 10, 100 << 10),
}
COUNTS = (
    "batch", "dim", "conditions", "features", "layers", "wide", "precision", "single", "t_dtype", "t_per_sample", "rows",
    "most_branches", "slots", "scale_row_stride", "scale_branch_stride", "scale_sample_stride", "kept",
    "multiprocessors", "shared_per_block", "shared_per_multiprocessor",
)  # fmt: skip
POINTERS = (
    "layer_table", "feature_table", "params", "x0", "x", "cond", "t", "times", "table", "branches", "scale", "seeds",
    "keep_rows", "states", "points",
)  # fmt: skip
TIME_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class EngineCall(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in COUNTS]
        + [("time", ctypes.c_double)]
        + [(name, ctypes.c_void_p) for name in POINTERS]
    )


class Layout(NamedTuple):
    """How a call was laid out; ``resident``: layers whose weights lie in shared memory."""

    large: bool
    states_shared: bool
    remote: bool
    resident: int
    blocks: int


@functools.cache
def library() -> ctypes.CDLL:
    """The engine for the CPU, built once in a test run."""
    loaded = load(SOURCE)
    loaded.pfc_test_engine.restype = ctypes.c_int64
    loaded.pfc_test_feature.restype = ctypes.c_double
    loaded.pfc_test_feature.argtypes = [ctypes.c_int, *[ctypes.c_double] * 3]
    return loaded


def _run(call: EngineCall, tensors: dict[str, Tensor | None], device: str) -> Layout:
    for name, tensor in tensors.items():
        if tensor is not None:
            assert tensor.is_contiguous()
            setattr(call, name, tensor.data_ptr())
    call.multiprocessors, call.shared_per_block, call.shared_per_multiprocessor = DEVICES[device]
    found = library().pfc_test_engine(ctypes.byref(call))
    assert found >= 0, ("the least does not fit", "an operand was not rounded")[-1 - found]
    return Layout(*[bool(found & 1 << bit) for bit in range(3)], found >> 3 & 0x1FFF, found >> 16)


def _call(x: Tensor, cond: Tensor | None, layers: Tensor, features: Tensor, precision: int) -> EngineCall:
    call = EngineCall()
    call.batch, call.dim = x.shape[0], x[0].numel()
    call.conditions = 0 if cond is None else cond.shape[1]
    call.features, call.layers = len(features), len(layers)
    call.wide, call.precision = x.dtype == torch.float64, precision
    return call


def network(
    x: Tensor, t: Tensor | float, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor,
    precision: int = 0, device: str = "H100",
) -> tuple[Tensor, Layout]:  # fmt: skip
    """As ``pyflowcore.ops.network``; a float is a time on the host."""
    call, out = _call(x, cond, layers, features, precision), torch.full_like(x, torch.nan)
    call.single = 1
    if isinstance(t, Tensor):
        call.t_dtype, call.t_per_sample = TIME_DTYPES[t.dtype], t.dim()
    else:
        call.time, t = t, None
    tensors = {
        "layer_table": layers,
        "feature_table": features,
        "params": params,
        "x0": x,
        "x": out,
        "cond": cond,
        "t": t,
    }
    return out, _run(call, tensors, device)


def trajectory(
    x0: Tensor, times: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, table: Tensor,
    branches: Tensor, guidance: Tensor | None = None, seeds: Tensor | None = None, keep_rows: Tensor | None = None,
    keep_points: bool = False, precision: int = 0, device: str = "H100",
) -> tuple[tuple[Tensor, Tensor, Tensor], Layout]:  # fmt: skip
    """As ``pyflowcore.ops.trajectory``."""
    call, out = _call(x0, cond, layers, features, precision), torch.full_like(x0, torch.nan)
    call.rows, call.kept = len(table), 0 if keep_rows is None else len(keep_rows)
    call.most_branches = int(branches.max()) if len(branches) else 0
    named = table[:, R["b"] : R["b"] + R["max_slots"]].any(0) | table[
        :, R["e"] : R["e"] + R["max_slots"]
    ].any(0)
    stores = table[:, R["store"]].int().tolist()
    call.slots = max([-1, *stores, *named.nonzero().flatten().tolist()]) + 1
    states = x0.new_full((call.kept, *x0.shape), torch.nan)
    points = x0.new_full((int((branches > 0).sum()) if keep_points else 0, *x0.shape), torch.nan)
    if guidance is not None:
        last = guidance.shape[-1]
        call.scale_row_stride = guidance[0].numel()
        call.scale_branch_stride = last if guidance.dim() == 3 else 0
        call.scale_sample_stride = int(last != 1)
    tensors = {
        "layer_table": layers, "feature_table": features, "params": params, "x0": x0, "x": out, "cond": cond, "times": times,
        "table": table, "branches": branches, "scale": guidance, "seeds": seeds, "keep_rows": keep_rows, "states": states,
        "points": points if keep_points else None,
    }  # fmt: skip
    layout = _run(call, tensors, device)
    return (out, states, points), layout
