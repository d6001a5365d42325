"""adaptive_: what follows one evaluation of the field in an adaptive solve; network_solve_: whole solves of a fused network.
csrc/core/adaptive.hpp says what is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core, _library
from . import _plain, _plain_adaptive
from ._plain_guide import CHUNK

_library.define(
    "adaptive_(Tensor f, Tensor(a!) x, Tensor(b!) y, Tensor(c!)? inp, Tensor(d!) t, Tensor(e!) k, Tensor(f!) clock, "
    "Tensor(g!) counts, Tensor(h!) rows, Tensor(i!) running, Tensor(j!) partial, Tensor(k!)? steps, Tensor? home, "
    "Tensor times, Tensor table, int norm_elements, int max_nfe, float sign) -> ()"
)
_library.define(
    "network_solve_(Tensor(a!) x, Tensor(b!) clock, Tensor(c!) counts, Tensor(d!) rows, Tensor? cond, Tensor params, "
    "Tensor layers, Tensor features, Tensor times, Tensor table, int slots, int norm_elements, int max_nfe, float sign) -> ()"
)

# The same for small samples in lockstep on a CPU, in memory of their own: csrc/cpu/lockstep.hpp.
_library.define(
    "lockstep_begin(Tensor x, Tensor times, Tensor table, Tensor tolerances, float first_step, int norm_elements, "
    "int max_nfe, float sign) -> Tensor"
)
_library.define("lockstep_(Tensor f, Tensor(a!) y, Tensor(b!) t, Tensor(c!) memory) -> int")
_library.define("lockstep_end(Tensor memory, Tensor y) -> (Tensor, Tensor, Tensor)")

TABLES = {name: torch.from_numpy(table) for name, table in _core.adaptive_tables().items()}
METHODS = tuple(TABLES)


def slots(method: str, dense: bool) -> int:
    """Evaluations that a sample keeps: its stages, and with dense output the further ones and the state at the step's end."""
    facts = TABLES[method][_plain_adaptive.FACTS]
    extra = int(facts[_plain_adaptive.EXTRA])
    return int(facts[_plain_adaptive.STAGES]) + 1 + (extra + 1 if dense and extra else 0)


def _plain_version(f: Tensor, *args: Any) -> None:
    _plain._say(f, "adaptive_")
    _plain_adaptive.adaptive_(f, *args)


def _plain_network_solve(
    x: Tensor, clock: Tensor, counts: Tensor, rows: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor,
    features: Tensor, times: Tensor, table: Tensor, slots: int, norm_elements: int, max_nfe: int, sign: float,
) -> None:  # fmt: skip
    """The loop over the operators, whose bits the kernel has."""
    _plain._say(x, "network_solve_")
    batch, sample = len(x), x.numel() // max(len(x), 1)
    if not x.numel():
        return
    y, k = x.clone(), x.new_empty((batch, slots, *x.shape[1:]))
    t = torch.full((batch,), 1.0, dtype=torch.float64, device=x.device) * times[0]
    running = torch.full((1,), batch, dtype=torch.int64, device=x.device)
    partial = torch.empty(2 * batch * -(-sample // CHUNK), dtype=torch.float64, device=x.device)
    while int(running):
        f = torch.ops.pyflowcore.network(y, t, cond, params, layers, features, 0)
        torch.ops.pyflowcore.adaptive_(
            f, x, y, None, t, k, clock, counts, rows, running, partial, None, None, times, table, norm_elements, max_nfe, sign
        )  # fmt: skip


_library.definitions.impl("network_solve_", _plain_network_solve, "CompositeExplicitAutograd")


def _another_device(f: Tensor, y: Tensor, t: Tensor, memory: Tensor) -> int:
    raise ValueError(
        f"the field returned a tensor on {f.device}, the state is on {y.device}: lockstep_ is the CPU's alone"
    )


_library.definitions.impl("lockstep_", _another_device, "CompositeExplicitAutograd")
_library.definitions.impl("adaptive_", _plain_version, "CompositeExplicitAutograd")


@torch.library.register_fake("pyflowcore::adaptive_", lib=_library.definitions)
def _fake(*args: Any) -> None:
    return None


@torch.library.register_fake("pyflowcore::network_solve_", lib=_library.definitions)
def _fake_network_solve(*args: Any) -> None:
    return None
