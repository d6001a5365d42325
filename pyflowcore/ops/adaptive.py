"""adaptive_: what follows one evaluation of the field in an adaptive solve. csrc/core/adaptive.hpp says what is computed."""

from __future__ import annotations

from typing import Any

import torch

from .. import _core, _library
from . import _plain, _plain_adaptive

_library.define(
    "adaptive_(Tensor f, Tensor(a!) x, Tensor(b!) y, Tensor(c!)? inp, Tensor(d!) t, Tensor(e!) k, Tensor(f!) clock, "
    "Tensor(g!) counts, Tensor(h!) rows, Tensor(i!) running, Tensor(j!) partial, Tensor(k!)? steps, Tensor? home, Tensor times, Tensor table, "
    "int norm_elements, int max_nfe, float sign) -> ()"
)

TABLES = {name: torch.from_numpy(table) for name, table in _core.adaptive_tables().items()}
METHODS = tuple(TABLES)


def slots(method: str, dense: bool) -> int:
    """Evaluations that a sample keeps: its stages, and with dense output the further ones and the state at the step's end."""
    facts = TABLES[method][_plain_adaptive.FACTS]
    extra = int(facts[_plain_adaptive.EXTRA])
    return int(facts[_plain_adaptive.STAGES]) + 1 + (extra + 1 if dense and extra else 0)


def _plain_version(f: torch.Tensor, *args: Any) -> None:
    _plain._say(f, "adaptive_")
    _plain_adaptive.adaptive_(f, *args)


_library.definitions.impl("adaptive_", _plain_version, "CompositeExplicitAutograd")


@torch.library.register_fake("pyflowcore::adaptive_", lib=_library.definitions)
def _fake(*args: Any) -> None:
    return None
