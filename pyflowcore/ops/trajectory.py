"""trajectory: a whole plan over a small packed network, every row, its guidance and its noise, in one call."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from .. import _core, _library
from .network import check_network

_library.define(
    "trajectory(Tensor x0, Tensor times, Tensor? cond, Tensor params, Tensor layers, Tensor features, Tensor table, "
    "Tensor branches, Tensor? guidance, Tensor? seeds, Tensor? keep_rows, bool keep_points=False, int precision=0) -> "
    "(Tensor x, Tensor states, Tensor points)"
)

_R = _core.record
MAX_BRANCHES = 8


def _check_rows(name: str, tensor: Tensor, dtype: torch.dtype, rows: int | None = None) -> None:
    if (
        tensor.dtype != dtype
        or tensor.dim() != 1
        or tensor.device.type != "cpu"
        or (rows is not None and len(tensor) != rows)
    ):
        size = "rows" if rows is None else rows
        raise ValueError(
            f"{name} must be {str(dtype).removeprefix('torch.')} [{size}] on the CPU, got {tensor.dtype} "
            f"{list(tensor.shape)} on {tensor.device}"
        )


def _check_slots(table: Tensor) -> None:
    """Every slot is written before it is read, by a row that has a prediction and does not read it, as every draw is one."""
    filled: set[int] = set()
    most, draws = _R["max_slots"], _R["max_draws"]
    for row, record in enumerate(table.tolist()):
        read = {k for k in range(most) if record[_R["b"] + k] != 0.0 or record[_R["e"] + k] != 0.0}
        if lacking := sorted(read - filled):
            raise ValueError(f"table: row {row} reads slot {lacking[0]}, which no row before it writes")
        if not -1.0 <= record[_R["store"]] < most:
            raise ValueError(
                f"table: row {row} stores into slot {record[_R['store']]:g}, allowed are -1 to {most - 1}"
            )
        for n in range(draws):
            draw = record[_R["draw"] + n]
            if (record[_R["s"] + n] != 0.0 or record[_R["r"] + n] != 0.0) and not 0 <= draw <= 2**32 - 1:
                raise ValueError(f"table: row {row} names draw {draw:g}, allowed are 0 to 2^32 - 1")
        store = int(record[_R["store"]])
        if store in read:
            raise ValueError(f"table: row {row} reads and writes slot {store} in place")
        if store >= 0 and record[_R["evaluates"]] == 0.0:
            raise ValueError(f"table: row {row} evaluates nothing and stores into slot {store}")
        filled.add(store)


def check_values(
    x0: Tensor, cond: Tensor | None, table: Tensor, branches: Tensor, guidance: Tensor | None, seeds: Tensor | None,
    keep_rows: Tensor | None,
) -> None:  # fmt: skip
    """What is seen only by looking at the tables."""
    if not bool(torch.isfinite(table.to(x0.dtype)).all()):
        raise ValueError(f"table has a coefficient that is not finite in {x0.dtype}")
    _check_slots(table)
    rows, most = len(table), 0 if not len(branches) else int(branches.max())
    evaluates = table[:, _R["evaluates"]] != 0.0
    if most > MAX_BRANCHES or bool((branches < 0).any()):
        raise ValueError(f"branches must be from 0 to {MAX_BRANCHES}, got {branches.tolist()}")
    if bool(((branches > 0) & ~evaluates).any()):
        raise ValueError("branches: a row that evaluates nothing has branches")
    if bool(((branches == 0) & evaluates & (table[:, _R["q"]] != 0.0)).any()):
        raise ValueError(
            "branches: a row evaluates the network and needs a branch: its prediction takes the output (q is not 0)"
        )
    stacked = 1 if cond is None or not x0.shape[0] else cond.shape[0] // x0.shape[0]
    if cond is not None and x0.shape[0]:
        if cond.shape[0] % x0.shape[0]:
            raise ValueError(f"cond has {cond.shape[0]} rows, no multiple of the batch {x0.shape[0]}")
        if any(n not in (0, 1, stacked) for n in branches.tolist()):
            raise ValueError(
                f"cond stacks {stacked} branches, a row takes {most}; a row takes none, the first, or all"
            )
    if most > 1:
        if guidance is None:
            raise ValueError(f"guidance: {most} branches need a scale, got None")
        if guidance.dim() == 3 and guidance.shape[1] != most - 1:
            raise ValueError(
                f"guidance has {guidance.shape[1]} scales a row, {most} branches need {most - 1}"
            )
    draws = table[:, _R["s"] : _R["r"] + _R["max_draws"]]
    if seeds is None and bool((draws != 0.0).any()):
        raise ValueError("seeds: the plan draws noise and needs them, got None")
    if keep_rows is not None and len(keep_rows):
        kept = keep_rows.tolist()
        if kept[0] < 0 or kept[-1] >= rows or any(a >= b for a, b in itertools.pairwise(kept)):
            raise ValueError(f"keep_rows must ascend from 0 to {rows - 1}, got {kept}")


def trajectory(
    x0: Tensor,
    times: Tensor,
    table: Tensor,
    branches: Tensor,
    params: Tensor,
    layers: Tensor,
    features: Tensor,
    *,
    cond: Tensor | None = None,
    guidance: Tensor | None = None,
    seeds: Tensor | None = None,
    keep_rows: Tensor | None = None,
    keep_points: bool = False,
    precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs every row of a plan's table from x0, the field being a packed network.

    Args:
        x0: the state when the first row begins [B, ...], float32 or float64; not written.
        times: the network's time of each row, float64 [rows] on the CPU.
        table: ``plan.table`` with the field's sign applied to its column q, float64 [rows, 56] on the CPU.
        branches: how many branches of the network each row evaluates, int64 [rows] on the CPU: 0 none, 1 the first condition,
            else all of cond's.
        params, layers, features, precision: as :func:`pyflowcore.ops.network`.
        cond: [J B, C] of x0's dtype, the branches' conditions stacked, the unconditional one last; or None.
        guidance: [rows, 1 or B] or [rows, J - 1, 1 or B] of x0's dtype: the guidance scale of each row.
        seeds: int64 [B], for plans that draw noise.
        keep_rows: int64 on the CPU, ascending: after these rows the state is kept.
        keep_points: keep the points where the network was evaluated, in x0's dtype, before ``in_scale``.

    Returns:
        (the state after the last row [B, ...], the kept states [len(keep_rows), B, ...], the points [evaluations, B, ...] or
        [0, B, ...]). The bits are those of a loop of :func:`pyflowcore.ops.network` and :func:`pyflowcore.ops.combine_` on the
        same device. No gradient.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    check_network(x0, cond, params, layers, features, precision, "x0")
    rows, batch = table.shape[0] if table.dim() else 0, x0.shape[0]
    if table.dtype != torch.float64 or table.shape[1:] != (_R["width"],) or table.device.type != "cpu":
        raise ValueError(
            f"table must be float64 [rows, {_R['width']}] on the CPU, got {table.dtype} {list(table.shape)} on {table.device}"
        )
    _check_rows("times", times, torch.float64, rows)
    _check_rows("branches", branches, torch.int64, rows)
    if keep_rows is not None:
        _check_rows("keep_rows", keep_rows, torch.int64)
    if seeds is not None and (seeds.dtype != torch.int64 or seeds.shape != (batch,)):
        raise ValueError(f"seeds must be int64 [{batch}], got {seeds.dtype} {list(seeds.shape)}")
    if guidance is not None:
        if guidance.dtype != x0.dtype:
            raise TypeError(f"guidance is {guidance.dtype}, x0 is {x0.dtype}; they must agree")
        if guidance.dim() not in (2, 3) or guidance.shape[0] != rows or guidance.shape[-1] not in (1, batch):
            raise ValueError(
                f"guidance must be [{rows}, 1 or {batch}] or [{rows}, branches - 1, 1 or {batch}], got "
                f"{list(guidance.shape)}"
            )
    for name, tensor in (("guidance", guidance), ("seeds", seeds)):
        if tensor is not None and tensor.device != x0.device:
            raise ValueError(f"{name} is on {tensor.device}, x0 is on {x0.device}")
    if not torch.compiler.is_compiling():
        check_values(x0, cond, table, branches, guidance, seeds, keep_rows)
    return torch.ops.pyflowcore.trajectory(
        x0, times, cond, params, layers, features, table, branches, guidance, seeds, keep_rows, keep_points, precision
    )  # fmt: skip


def point_is_state(record: list[float]) -> bool:
    """Whether a row's next point is the state itself."""
    slots, draws = _R["max_slots"], _R["max_draws"]
    plain = record[_R["e_new"]] == 0.0 and record[_R["c_minus_1"]] == 0.0 and record[_R["c"]] != 0.0
    return plain and not any(record[_R["e"] : _R["e"] + slots]) and not any(record[_R["r"] : _R["r"] + draws])


@torch.library.register_fake("pyflowcore::trajectory", lib=_library.definitions)
def _fake(
    x0: Tensor, times: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, table: Tensor,
    branches: Tensor, guidance: Tensor | None, seeds: Tensor | None, keep_rows: Tensor | None, keep_points: bool = False,
    precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def make(*leading: Any) -> Tensor:
        return torch.empty((*leading, *x0.shape), dtype=x0.dtype, device=x0.device)

    # How many rows evaluate is a value of `branches`.
    points = torch.library.get_ctx().new_dynamic_size() if keep_points else 0
    return make(), make(0 if keep_rows is None else keep_rows.shape[0]), make(points)
