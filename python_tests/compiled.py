"""C++ that tests compile: once in a run, whichever of its processes is the first to ask."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = "PYFLOWCORE_TEST_LIBRARIES"  # the variable that names the run's folder; conftest.py makes it
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")


def load(source: Path) -> ctypes.CDLL:
    """The library that a file of csrc's code makes for the CPU."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler, and none of c++, g++ and clang++ is on PATH")
    built = Path(os.environ[FOLDER]) / f"{source.stem}.so"
    with built.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            partial = built.with_suffix(".partial")
            # The Quads of csrc/cuda read four elements at once, which strict aliasing would not allow on the host.
            command = [compiler, *FLAGS, "-fno-strict-aliasing", str(source), "-o", str(partial)]
            subprocess.run(command, check=True)
            partial.rename(built)
    return ctypes.CDLL(str(built))
