"""Prove that the objects of one instruction set share no symbol with those of another.

A kernel file is compiled once for each instruction set. An inline function or template that it instantiates outside of
its own namespace becomes a weak symbol, of which the linker keeps one copy for everybody: if that is the AVX-512 copy,
an AVX2 machine dies of an illegal instruction. So these objects may define no weak symbol, and no name twice.

    python tools/check_weak_symbols.py OBJECT ... | FOLDER --match kernels_
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from binaries import report, run, symbols

# nm's letters: W, w weak; V, v weak object; u unique in the whole process.
WEAK = set("WwVvu")


def readable(name: str) -> str:
    return run("c++filt", name).strip()


def check(objects: list[Path]) -> list[str]:
    problems = []
    definers: dict[str, set[Path]] = defaultdict(set)
    for path in objects:
        for symbol in symbols(path, "--defined-only"):
            if symbol.kind in WEAK:
                problems.append(f"{path.name} defines the weak symbol {readable(symbol.name)}")
            elif symbol.kind.isupper():
                definers[symbol.name].add(path)
    for name, paths in definers.items():
        if len(paths) > 1:
            problems.append(
                f"{readable(name)} is defined by {', '.join(sorted(str(path) for path in paths))}"
            )
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="objects, or a build folder")
    parser.add_argument(
        "--match", default="kernels_", help="in a folder: take objects whose path has this text"
    )
    options = parser.parse_args()
    objects = []
    for path in options.paths:
        if path.is_dir():
            objects += [
                found for found in sorted(path.rglob("*.o")) if options.match in str(found.relative_to(path))
            ]
        else:
            objects.append(path)
    return report("check_weak_symbols", len(objects), "objects", check(objects))


if __name__ == "__main__":
    sys.exit(main())
