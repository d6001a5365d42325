"""Loads the compiled libraries of torch operators, and says which are live and why the others are not.

The schemas are defined in ``ops/``, once, for every backend: the CPU and the CUDA library register their kernels for them,
and plain PyTorch versions (``ops/_plain.py``) serve every device that has none.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import _core

OLDEST_TORCH = (2, 10)


class PyflowcoreWarning(UserWarning):
    """Something runs, but not the way that was asked for, or not as fast as it could."""


@dataclass
class Backend:
    """One compiled library: whether its kernels are registered, and if not, why."""

    live: bool
    reason: str
    handle: ctypes.CDLL | None = field(default=None, repr=False)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _driver_version() -> int | None:
    """The CUDA version that the installed driver supports, as 1000 * major + 10 * minor; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def _folder() -> Path:
    # An editable install keeps Python in the checkout and the compiled parts beside _core.
    return Path(_core.__file__).parent / "lib"


def _open(name: str, folder: Path | None = None) -> Backend:
    """Loads one library; its kernels register themselves for the schemas."""
    if _torch_version() < OLDEST_TORCH:
        return Backend(
            False,
            f"torch {torch.__version__} is older than {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, the first with the stable ABI "
            "that the compiled kernels need: plain PyTorch runs instead; `pip install 'torch>=2.10'` turns them on",
        )
    library = (folder or _folder()) / f"lib{name}.so"
    if not library.exists():
        return Backend(False, f"{library.name} is not installed: plain PyTorch runs instead")
    try:
        return Backend(True, "", ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL))
    except OSError as error:
        return Backend(False, f"{library.name} could not be loaded ({error}): plain PyTorch runs instead")


def _cuda_backend() -> Backend:
    if not _core.build["cuda_compiled"]:
        return Backend(
            False, "this build has no CUDA part (no nvcc was found when it was built, or it was turned off)"
        )
    if not torch.cuda.is_available():
        return Backend(
            False, "torch sees no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
        )
    major, minor = (int(part) for part in _core.build["cuda_toolkit"].split(".")[:2])
    driver = _driver_version()
    if driver is not None and driver < 1000 * major:
        return Backend(
            False,
            f"the NVIDIA driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, the CUDA library was built with "
            f"{major}.{minor}: update the driver, or build pyflowcore with an older toolkit; plain PyTorch runs instead",
        )
    return _open("pyflowcore_cuda")


def _cpu_backend() -> Backend:
    backend = _open("pyflowcore_cpu")
    if backend.handle is not None:
        backend.handle.pyflowcore_cpu_isa.restype = ctypes.c_char_p
        wanted = os.environ.get("PYFLOWCORE_CPU_ISA")
        if wanted and not backend.handle.pyflowcore_cpu_has_isa(wanted.encode()):
            warnings.warn(
                f"PYFLOWCORE_CPU_ISA={wanted!r} is not available here, allowed are {', '.join(cpu_isas(backend))}: "
                f"{backend.handle.pyflowcore_cpu_isa().decode()} runs",
                PyflowcoreWarning,
                stacklevel=2,
            )
    return backend


def cpu_isas(backend: Backend | None = None) -> list[str]:
    """The CPU instruction sets that this build and this machine both have."""
    handle = (backend or cpu).handle
    if handle is None:
        return []
    return [name for name in ("baseline", "avx2", "avx512") if handle.pyflowcore_cpu_has_isa(name.encode())]


def cpu_isa() -> str | None:
    """The CPU instruction set whose kernels run; None where plain PyTorch does."""
    return None if cpu.handle is None else cpu.handle.pyflowcore_cpu_isa().decode()


def select_cpu_isa(name: str) -> None:
    """Chooses the CPU kernels: "baseline", "avx2" or "avx512". The results do not depend on it."""
    if cpu.handle is None:
        raise RuntimeError(f"there are no compiled CPU kernels to choose from: {cpu.reason}")
    if not cpu.handle.pyflowcore_cpu_select_isa(name.encode()):
        raise ValueError(
            f"instruction set {name!r} is not available here, allowed are {', '.join(cpu_isas())}"
        )


definitions = torch.library.Library("pyflowcore", "DEF")


def define(schema: str) -> None:
    """Declares an operator of the namespace ``torch.ops.pyflowcore``."""
    definitions.define(schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))


cpu = _cpu_backend()
cuda = _cuda_backend()
# One sentence at import where something that the user could expect is off; silence where nothing is amiss.
if not cpu.live:
    warnings.warn(f"pyflowcore: {cpu.reason}.", PyflowcoreWarning, stacklevel=2)
if not cuda.live and torch.cuda.is_available():
    warnings.warn(f"pyflowcore on CUDA: {cuda.reason}.", PyflowcoreWarning, stacklevel=2)
