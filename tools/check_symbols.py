"""Prove that the compiled parts depend on what they may, and load.

The promise of one wheel for every torch since 2.10 rests on it: of torch, the operator libraries may use only the C
shims (`aoti_torch_*`, `torch_*`), they must name the libraries that hold them (torch is loaded RTLD_LOCAL, so an
undefined symbol without a NEEDED entry fails at import), and `_core` must not know torch at all.

    python tools/check_symbols.py [FOLDER of the installed package | LIBRARY ...] [--no-load]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from binaries import needed, report, search_paths, symbols

# The C and C++ runtimes carry a version on every symbol, or are one of these.
RUNTIME_VERSION = re.compile(r"^(GLIBC|GLIBCXX|CXXABI|GCC)_")
RUNTIME_NAME = re.compile(r"^(__gmon_start__|_ITM_.*|__cxa_finalize|__tls_get_addr|__dso_handle)$")
TORCH_SHIM = re.compile(r"^(aoti_torch_|torch_)[a-z0-9_]+$")
CPYTHON = re.compile(r"^_?Py[A-Z_]")

SYSTEM_LIBRARIES = re.compile(
    r"^(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[-a-z0-9_]*)\.so(\.\d+)*$"
)
# What each part must and may ask the loader for, beyond the system's libraries.
REQUIRED = {"cpu": {"libtorch_cpu.so"}, "cuda": {"libtorch_cuda.so"}, "core": set[str]()}
ALLOWED = {
    "cpu": {"libtorch_cpu.so"},
    "cuda": {"libtorch_cpu.so", "libtorch_cuda.so", "libcuda.so.1"},
    "core": set[str](),
}
# The driver's functions that a CUDA library may name when it links libcuda.so.1.
CUDA_DRIVER = re.compile(r"^cu[A-Z]\w+$")


def part_of(path: Path) -> str:
    """Which of the three compiled parts a file is."""
    if path.name.startswith("_core"):
        return "core"
    if path.name == "libpyflowcore_cpu.so":
        return "cpu"
    if path.name == "libpyflowcore_cuda.so":
        return "cuda"
    raise SystemExit(f"error: {path} is none of _core*.so, libpyflowcore_cpu.so, libpyflowcore_cuda.so")


def libraries_in(folder: Path) -> list[Path]:
    """The compiled parts below a folder; `_core` and the CPU library must be there."""
    found = sorted([*folder.rglob("_core*.so"), *folder.rglob("libpyflowcore_*.so")])
    missing = {"core", "cpu"} - {part_of(path) for path in found}
    if missing:
        raise SystemExit(f"error: {folder} has no compiled part for: {', '.join(sorted(missing))}")
    return found


def undefined_problems(path: Path, part: str) -> list[str]:
    problems = []
    for symbol in symbols(path, "--dynamic", "--undefined-only"):
        if RUNTIME_VERSION.match(symbol.version) or RUNTIME_NAME.match(symbol.name):
            continue
        allowed = {"core": CPYTHON, "cpu": TORCH_SHIM, "cuda": TORCH_SHIM}[part]
        if allowed.match(symbol.name):
            continue
        if part == "cuda" and "libcuda.so.1" in needed(path) and CUDA_DRIVER.match(symbol.name):
            continue
        problems.append(f"{path.name} uses {symbol.name}, which is no stable interface")
    return problems


def needed_problems(path: Path, part: str) -> list[str]:
    entries = {name for name in needed(path) if not SYSTEM_LIBRARIES.match(name)}
    problems = [f"{path.name} has no NEEDED entry for {name}" for name in sorted(REQUIRED[part] - entries)]
    problems += [f"{path.name} must not need {name}" for name in sorted(entries - ALLOWED[part])]
    for entry in search_paths(path):
        if not entry.startswith("$ORIGIN"):
            problems.append(f"{path.name} looks for libraries in {entry}, a folder of the build machine")
    return problems


def load_problems(path: Path) -> list[str]:
    """Load a library the way Python does, every symbol bound at once, in a process that has only torch."""
    code = "import ctypes, os, sys, torch; ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW | os.RTLD_LOCAL)"
    result = subprocess.run([sys.executable, "-c", code, str(path.resolve())], capture_output=True, text=True)
    if result.returncode == 0:
        return []
    last = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
    return [f"{path.name} does not load beside torch: {last[0]}"]


def missing_shims(path: Path, folder: Path) -> list[str]:
    """For a CUDA library where torch has no CUDA: every shim but the CUDA-only ones is in libtorch_cpu.so."""
    have = {symbol.name for symbol in symbols(folder / "libtorch_cpu.so", "--dynamic", "--defined-only")}
    cuda_only = re.compile(r"^(aoti_torch|torch)_\w*(cuda|stream)\w*$")
    return [
        f"{path.name} uses {symbol.name}, which torch's libtorch_cpu.so does not have"
        for symbol in symbols(path, "--dynamic", "--undefined-only")
        if TORCH_SHIM.match(symbol.name) and symbol.name not in have and not cuda_only.match(symbol.name)
    ]


def check_loading(path: Path, part: str) -> list[str]:
    if part == "core":
        return []
    import torch

    folder = Path(torch.__file__).parent / "lib"
    if part == "cuda" and not (folder / "libtorch_cuda.so").exists():
        return missing_shims(path, folder)
    return load_problems(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="libraries, or a folder that holds them"
    )
    parser.add_argument(
        "--no-load", action="store_true", help="only read the files: do not load them beside torch"
    )
    options = parser.parse_args()
    libraries = [lib for path in options.paths for lib in (libraries_in(path) if path.is_dir() else [path])]
    problems = []
    for path in libraries:
        part = part_of(path)
        problems += undefined_problems(path, part) + needed_problems(path, part)
        if not options.no_load:
            problems += check_loading(path, part)
    return report("check_symbols", len(libraries), "libraries", problems)


if __name__ == "__main__":
    sys.exit(main())
