"""info(): what is installed, what is live, why the rest is not, and what was proven where."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import _core, _library

__all__ = ["Info", "info"]


@dataclass(frozen=True)
class Info:
    """The answer of :func:`info`; print it, or take ``as_dict()``."""

    values: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return json.loads(json.dumps(self.values))

    def __str__(self) -> str:
        width = max(len(key) for key in self.values)
        return "\n".join(f"{key:<{width}}  {value}" for key, value in self.values.items())


def _state(backend: _library.Backend, live: str) -> str:
    return f"live: {live}" if backend.live else f"off: {backend.reason}"


def _engine() -> str:
    """Where whole trajectories run in one operator."""
    backends = {"cpu": _library.cpu, "cuda": _library.cuda}
    live = [name for name, backend in backends.items() if backend.live]
    return f"live on {', '.join(live)}" if live else "off: the loop, in plain PyTorch"


def _proven() -> str:
    """Which CUDA kernels ran right on which GPU, from the committed record."""
    record = Path(__file__).parent / "proven.json"
    entries = json.loads(record.read_text()) if record.exists() else []
    if not entries:
        return (
            "none: the CUDA half compiles for every architecture below and has run on no GPU yet (unproven)"
        )
    return "; ".join(f"{', '.join(e['kernels'])} on {e['gpu']} at {e['commit']}" for e in entries)


def info() -> Info:
    """Versions, backends, instruction set, which libraries are live and why others are not, which CUDA kernels are proven."""
    build = _core.build
    cuda_live = ""
    if _library.cuda.live:
        cuda_live = f"CUDA {build['cuda_toolkit']} on {torch.cuda.get_device_name()}"
    built = (
        f"CUDA {build['cuda_toolkit']}, architectures {build['cuda_architectures']}"
        if build["cuda_compiled"]
        else "no"
    )
    isas = _library.cpu_isas()
    return Info(
        {
            "pyflowcore": build["version"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "compiler": build["compiler"],
            "cpu library": _state(_library.cpu, f"{_library.cpu_isa()} (of {', '.join(isas)})"),
            "threads": torch.get_num_threads(),
            "cuda library": _state(_library.cuda, cuda_live),
            "engine of fused fields": _engine(),
            "cuda built": built,
            "cuda kernels proven": _proven(),
            "other devices": "plain PyTorch, said at the first use",
        }
    )
