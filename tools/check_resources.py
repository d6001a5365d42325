"""Prove that no CUDA kernel spills registers or keeps a stack that nobody meant, on any architecture; no GPU needed.

Reads a CUDA library through `cuobjdump -res-usage` (any *.so, *.o or *.cubin), or a build log that holds the lines of
`nvcc -Xptxas -v` (any other file). In a library a spill shows as a stack; a log names the two apart.

The table beside this file, kernel_resources.json, holds what was committed: the registers and the stack of every kernel
on every architecture, and the version of nvcc that gave them. Any stack beyond the table's fails, and so do more registers
than the table's under the same compiler; under another compiler only stacks and spills fail. After a change that was meant,
write the table anew with --update and commit it.

    python tools/check_resources.py LIBRARY|LOG ... [--nvcc-version 13.0] [--update]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from binaries import report, run

TABLE = Path(__file__).with_name("kernel_resources.json")
Table = dict[str, dict[str, list[int]]]
BINARY_SUFFIXES = {".so", ".o", ".cubin", ".a"}


@dataclass(frozen=True)
class Usage:
    """What one instantiation of a kernel uses on one architecture; spills are known from a log only."""

    mangled: str
    arch: str
    registers: int
    stack: int
    spill_bytes: int = 0


def find_cuobjdump() -> str:
    """The toolkit's own, or the one that pip installed into this environment."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    nvcc = shutil.which("nvcc")
    beside_nvcc = [Path(nvcc).resolve().parent / "cuobjdump"] if nvcc else []
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    for path in [*beside_nvcc, Path("/usr/local/cuda/bin/cuobjdump"), *packaged]:
        if path.exists():
            return str(path)
    raise SystemExit("error: cuobjdump is neither on PATH nor installed: pip install nvidia-cuda-cuobjdump")


def parse_cuobjdump(text: str) -> Iterator[Usage]:
    arch = name = ""
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            yield Usage(name, arch, registers=int(match[1]), stack=int(match[2]) + int(match[3]))


def parse_ptxas(text: str) -> Iterator[Usage]:
    arch = name = ""
    stack = spill = 0
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(sm_\w+)'", line):
            name, arch = match[1], match[2]
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, spill = int(match[1]), int(match[2]) + int(match[3])
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            yield Usage(name, arch, registers=int(match[1]), stack=stack, spill_bytes=spill)
            name, stack, spill = "", 0, 0


def read(path: Path) -> list[Usage]:
    if path.suffix in BINARY_SUFFIXES:
        return list(parse_cuobjdump(run(find_cuobjdump(), "-res-usage", str(path))))
    return list(parse_ptxas(path.read_text(errors="replace")))


def kernel_names(usages: list[Usage]) -> dict[str, str]:
    """Mangled name -> the kernel with its template arguments, without namespaces (one of which holds a hash)."""
    mangled = sorted({usage.mangled for usage in usages})
    if not mangled:
        return {}
    plain = run("c++filt", "--no-params", *mangled).splitlines()
    return {raw: shorten(text) for raw, text in zip(mangled, plain, strict=True)}


def shorten(name: str) -> str:
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"(\w+::)+", "", name).replace("> >", ">>")


def summarise(usages: list[Usage], names: dict[str, str]) -> Table:
    """kernel -> architecture -> [registers, bytes of stack]."""
    table: Table = {}
    for usage in sorted(usages, key=lambda usage: (names[usage.mangled], usage.arch)):
        table.setdefault(names[usage.mangled], {})[usage.arch] = [usage.registers, usage.stack]
    return table


def write_table(nvcc: str | None, kernels: Table) -> None:
    """One line for each kernel, so that a change of one is one line of a diff."""
    lines = [f"  {json.dumps(kernel)}: {json.dumps(rows)}" for kernel, rows in kernels.items()]
    body = ",\n".join(lines)
    TABLE.write_text(f'{{\n "nvcc": {json.dumps(nvcc)},\n "kernels": {{\n{body}\n }}\n}}\n')


def compare(usages: list[Usage], names: dict[str, str], table: Table, same_compiler: bool) -> list[str]:
    problems = []
    for usage in usages:
        where = f"{names[usage.mangled]} for {usage.arch}"
        if usage.spill_bytes:
            problems.append(f"{where} spills {usage.spill_bytes} bytes of registers")
        row = table.get(names[usage.mangled], {}).get(usage.arch)
        registers, stack = row or [0, 0]
        if usage.stack > stack:
            problems.append(f"{where} has a stack of {usage.stack} bytes; {stack} are allowed")
        if same_compiler and row is None:
            problems.append(f"{where} is not in {TABLE.name}: run this script with --update and commit it")
        if same_compiler and row is not None and usage.registers > registers:
            problems.append(f"{where} uses {usage.registers} registers; {TABLE.name} has {registers}")
    return problems


def nvcc_version() -> str | None:
    if shutil.which("nvcc") is None:
        return None
    match = re.search(r"release (\d+\.\d+)", run("nvcc", "--version"))
    return match[1] if match else None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="CUDA libraries, objects or build logs"
    )
    parser.add_argument(
        "--nvcc-version", default=nvcc_version(), help="that built them; default: of the nvcc on PATH"
    )
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.name} from what is read")
    options = parser.parse_args()
    usages = [usage for path in options.paths for usage in read(path)]
    names = kernel_names(usages)
    if options.update:
        write_table(options.nvcc_version, summarise(usages, names))
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"nvcc": None, "kernels": {}}
    same_compiler = table["nvcc"] is not None and table["nvcc"] == options.nvcc_version
    if not same_compiler:
        print(
            f"check_resources: the table is of nvcc {table['nvcc']}, not {options.nvcc_version}: registers not compared"
        )
    return report(
        "check_resources", len(usages), "kernels", compare(usages, names, table["kernels"], same_compiler)
    )


if __name__ == "__main__":
    sys.exit(main())
