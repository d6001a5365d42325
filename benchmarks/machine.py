"""What a result was measured on: versions, device, instruction set, caches, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import pyflowcore as pfc
from pyflowcore import _library

PACKAGES = (
    "pyflowcore", "torch", "numpy", "diffusers", "torchdiffeq", "torchode", "flow_matching", "diffrax", "jax",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LARGE_CACHE = 32 << 20  # assumed where the system does not say


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda
    return found


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def last_level_cache() -> int:
    """Bytes of the largest CPU cache."""
    sizes = [_LARGE_CACHE] if not _CACHES.exists() else [0]
    for path in _CACHES.glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1))
    return max(sizes) or _LARGE_CACHE


@cache
def cache_bytes(device: str) -> int:
    """Bytes of the last cache in front of the memory of ``device``."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    return last_level_cache()


def commit() -> str | None:
    """The commit of the checkout that this file is in, with "+changes" where it was edited; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        edited = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+changes" if edited.returncode else "")


def describe(device: str) -> dict[str, Any]:
    """Everything about the machine that a result file carries."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    described: dict[str, Any] = {
        "versions": versions(),
        "device": {"type": device, "name": name, "cache_bytes": cache_bytes(device)},
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_set": instruction_set(),
        "commit": commit(),
        "info": pfc.info().as_dict(),
    }
    return described


def instruction_set() -> str:
    """The instruction set of the CPU kernels that run."""
    return _library.cpu_isa() or "none: plain PyTorch runs"
