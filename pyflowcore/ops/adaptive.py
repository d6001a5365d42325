"""adaptive_: what follows one evaluation of the field in an adaptive solve; network_solve_: whole solves of a fused network;
network_solve_log_prob_: of its state and the integral of its divergence. csrc/core/adaptive.hpp says what is computed."""

from __future__ import annotations

from collections.abc import Callable
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
# x: float64 [B, elements + estimates], the state and the integrals of its divergence; the rest but the records is of the
# network's dtype. probes: [estimates, B, elements], or None for the exact trace.
_library.define(
    "network_solve_log_prob_(Tensor(a!) x, Tensor(b!) clock, Tensor(c!) counts, Tensor(d!) rows, Tensor? cond, Tensor params, "
    "Tensor layers, Tensor features, Tensor? probes, Tensor times, Tensor table, int slots, int max_nfe, float sign) -> ()"
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


def _solve_by_rounds(
    evaluate: Callable[[Tensor, Tensor], Tensor], x: Tensor, clock: Tensor, counts: Tensor, rows: Tensor, times: Tensor,
    table: Tensor, slots: int, norm_elements: int, max_nfe: int, sign: float,
) -> None:  # fmt: skip
    """The loop over the operators, whose bits the kernels have."""
    batch, sample = len(x), x.numel() // max(len(x), 1)
    if not x.numel():
        return
    y, k = x.clone(), x.new_empty((batch, slots, *x.shape[1:]))
    t = torch.full((batch,), 1.0, dtype=torch.float64, device=x.device) * times[0]
    running = torch.full((1,), batch, dtype=torch.int64, device=x.device)
    partial = torch.empty(2 * batch * -(-sample // CHUNK), dtype=torch.float64, device=x.device)
    while int(running):
        torch.ops.pyflowcore.adaptive_(
            evaluate(y, t), x, y, None, t, k, clock, counts, rows, running, partial, None, None, times, table, norm_elements,
            max_nfe, sign,
        )  # fmt: skip


def _plain_network_solve(
    x: Tensor, clock: Tensor, counts: Tensor, rows: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor,
    features: Tensor, times: Tensor, table: Tensor, slots: int, norm_elements: int, max_nfe: int, sign: float,
) -> None:  # fmt: skip
    _plain._say(x, "network_solve_")

    def evaluate(y: Tensor, t: Tensor) -> Tensor:
        return torch.ops.pyflowcore.network(y, t, cond, params, layers, features, 0)

    _solve_by_rounds(evaluate, x, clock, counts, rows, times, table, slots, norm_elements, max_nfe, sign)


def _plain_network_solve_log_prob(
    x: Tensor, clock: Tensor, counts: Tensor, rows: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor,
    features: Tensor, probes: Tensor | None, times: Tensor, table: Tensor, slots: int, max_nfe: int, sign: float,
) -> None:  # fmt: skip
    _plain._say(x, "network_solve_log_prob_")
    dim = x.shape[1] - (1 if probes is None else len(probes))

    def evaluate(y: Tensor, t: Tensor) -> Tensor:
        point = y[:, :dim].to(params.dtype)
        out, traces = torch.ops.pyflowcore.network_divergence(
            point, t, cond, params, layers, features, probes
        )
        return torch.cat([out.double(), traces], 1)

    _solve_by_rounds(evaluate, x, clock, counts, rows, times, table, slots, dim, max_nfe, sign)


_library.definitions.impl("network_solve_", _plain_network_solve, "CompositeExplicitAutograd")
_library.definitions.impl(
    "network_solve_log_prob_", _plain_network_solve_log_prob, "CompositeExplicitAutograd"
)


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


@torch.library.register_fake("pyflowcore::network_solve_log_prob_", lib=_library.definitions)
def _fake_network_solve_log_prob(*args: Any) -> None:
    return None
