"""The ceiling arms: copies of a given footprint, with ordinary and with streaming stores, at a given thread count."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from benchmarks.memory import sets_to_rotate
from benchmarks.registry import Arm

_SOURCE = Path(__file__).with_name("copy_kernel.cpp")
_LINE = 64
_LEAST_PER_THREAD = 32 << 10  # bytes; below, waking a thread costs more than it saves


def _openmp_of_torch() -> list[str]:
    """What to link for OpenMP: torch's own runtime where its wheel brings one.

    Two runtimes in one process would keep two sets of threads, each spinning while the other works.
    """
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0]), f"-Wl,-rpath,{found[0].parent}"] if found else ["-fopenmp"]


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled copy, or None (with a warning that says why) where it cannot be built."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        warnings.warn(
            "no C++ compiler found: the ceiling is torch's copy_, without streaming stores", stacklevel=2
        )
        return None
    folder = Path(tempfile.mkdtemp(prefix="pyflowcore-benchmarks-"))
    object_file, library = folder / "copy.o", folder / "copy.so"
    flags = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-fopenmp"]
    try:
        for command in (
            [compiler, *flags, "-c", str(_SOURCE), "-o", str(object_file)],
            [compiler, "-shared", str(object_file), *_openmp_of_torch(), "-o", str(library)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        loaded = ctypes.CDLL(str(library))
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        warnings.warn(
            f"the ceiling is torch's copy_, because building copy_kernel.cpp failed: {detail}", stacklevel=2
        )
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    loaded.pfc_bench_copy.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
    ]
    loaded.pfc_bench_copy.restype = None
    loaded.pfc_bench_has_streaming.restype = ctypes.c_int
    return loaded


def _aligned(size: int, device: str) -> torch.Tensor:
    """``size`` bytes that begin on a cache line, written once so that the memory exists."""
    raw = torch.empty(size + _LINE, dtype=torch.uint8, device=device)
    skip = -raw.data_ptr() % _LINE
    return raw[skip : skip + size].random_(0, 256)


def copy_arms(footprint: int, device: str, threads: int, *, rotate: bool) -> list[Arm]:
    """Ceiling arms that read footprint / 2 bytes and write as many. ``rotate``: from sets larger than the cache.

    CPU: "copy" (ordinary stores) and "streaming copy" of copy_kernel.cpp, else torch's copy_. CUDA: copy_.
    """
    size = max(_LINE, -(-footprint // 2 // _LINE) * _LINE)
    sets = sets_to_rotate(2 * size, device) if rotate else 1
    pairs = [(_aligned(size, device), _aligned(size, device)) for _ in range(sets)]
    threads = max(1, min(threads, size // _LEAST_PER_THREAD))
    library = _library() if device == "cpu" else None
    if library is None:
        calls: list[Callable[[], object]] = [functools.partial(to.copy_, source) for to, source in pairs]
        return [Arm("copy", "ceiling", calls)]

    def arm(name: str, streaming: int) -> Arm:
        # Each partial holds the tensors it points into.
        return Arm(name, "ceiling", [_Copy(library, to, source, threads, streaming) for to, source in pairs])

    arms = [arm("copy", 0)]
    if library.pfc_bench_has_streaming():
        arms.append(arm("streaming copy", 1))
    return arms


class _Copy:
    """A call of the compiled copy that keeps its memory alive."""

    def __init__(
        self, library: ctypes.CDLL, to: torch.Tensor, source: torch.Tensor, threads: int, streaming: int
    ) -> None:
        self._keep = (to, source)
        self._call = functools.partial(
            library.pfc_bench_copy, to.data_ptr(), source.data_ptr(), to.numel(), threads, streaming
        )

    def __call__(self) -> None:
        self._call()
