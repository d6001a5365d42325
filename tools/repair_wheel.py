"""Turn the wheel of one build into one that runs elsewhere: auditwheel with the libraries that must not be copied in.

torch's libraries belong to the torch that the user has, the CUDA driver to the user's machine. Everything else that a
compiled part needs must be a part of the platform, so nothing is ever grafted: if auditwheel copies a library in, the
build has grown a dependency and the repair fails.

    python tools/repair_wheel.py WHEEL FOLDER [--plat manylinux_2_28_x86_64]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

EXCLUDED = ["libtorch*.so*", "libc10*.so*", "libcuda.so.*"]
MOST_BYTES = 100 * 1000 * 1000  # the default limit of the package index for one file


def repair(wheel: Path, folder: Path, platform: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.whl"))
    command = [sys.executable, "-m", "auditwheel", "repair", str(wheel), "--plat", platform]
    command += ["--wheel-dir", str(folder)]
    command += [word for name in EXCLUDED for word in ("--exclude", name)]
    subprocess.run(command, check=True)
    made = set(folder.glob("*.whl")) - before
    if len(made) != 1:
        raise SystemExit(f"error: auditwheel left {len(made)} new wheels in {folder}; one was expected")
    return made.pop()


def problems(wheel: Path) -> list[str]:
    found = []
    names = zipfile.ZipFile(wheel).namelist()
    grafted = [name for name in names if ".libs/" in name]
    if grafted:
        found.append(f"libraries were copied into the wheel: {', '.join(grafted)}")
    if not any(name.endswith("pyflowcore/py.typed") for name in names):
        found.append("py.typed is missing: type checkers will ignore the annotations")
    if any(name.startswith(("csrc/", "python_tests/", "tools/", "benchmarks/")) for name in names):
        found.append("the wheel holds folders that belong to the repository alone")
    if wheel.stat().st_size > MOST_BYTES:
        found.append(f"{wheel.stat().st_size / 1e6:.0f} MB, more than an index takes by default (100 MB)")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, help="where the repaired wheel goes")
    parser.add_argument("--plat", default="auto", help="the platform tag; default: the oldest that fits")
    options = parser.parse_args()
    made = repair(options.wheel, options.folder, options.plat)
    found = problems(made)
    for problem in found:
        print(f"repair_wheel: {made.name}: {problem}")
    print(f"repair_wheel: {made.name}, {made.stat().st_size / 1e6:.2f} MB, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
