"""Prove that the CUDA kernels compute what the CPU computes: no fused, approximate or flushing floating-point operation.

The bits of csrc/core hold on a GPU only if every multiplication and addition is rounded by itself (-fmad=false), and if
division and square root are the correctly rounded ones. PTX shows that and SASS does not: there, a correctly rounded
square root is itself made of fused operations. Integer mad is none of our business.

The engine's kernels are the exception, by name: their sums are chains of fused operations by contract (csrc/core/network.hpp),
their float64 activations are the CUDA library's, quotients may begin from an estimate, and those of the tensor cores'
precisions are approximate. Each may use the opcodes listed for it, no others.

    python tools/check_ptx.py LIBRARY|PTX ...        libpyflowcore_cuda.so (its embedded PTX), or the output of nvcc -ptx
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from binaries import report, run
from check_resources import BINARY_SUFFIXES, find_cuobjdump

ENTRY = re.compile(r"\.entry\s+(\S+?)\s*\(")
TARGET = re.compile(r"^\s*\.target\s+(\w+)")
OPCODE = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.]*)\s")
FORBIDDEN = {
    re.compile(
        r"^(fma|mad)\..*\b(f16|f16x2|bf16|bf16x2|f32|f32x2|f64)\b"
    ): "multiplies and adds with one rounding",
    re.compile(r"\.(approx|full)\b"): "is an approximation",
    re.compile(r"\.ftz\b"): "flushes subnormal numbers to zero",
    re.compile(r"^(ld|st)\.local\b"): "uses local memory",
}
# By a part of the mangled name: the opcodes that a kernel has on purpose.
ALLOWED = {
    re.compile(r"block_gated_kernelI\S*GatedVariantIf"): {"fma.rn.f32"},
    re.compile(r"block_gated_kernelI\S*GatedVariantId"): {"fma.rn.f64", "ex2.approx.ftz.f32", "rcp.approx.ftz.f64"},
    re.compile(r"engine_kernelI\S*5ExactIf"): {"fma.rn.f32", "fma.rn.f64", "rcp.approx.f32"},
    re.compile(r"engine_kernelI\S*5ExactId"): {"fma.rn.f64", "ex2.approx.ftz.f32", "rcp.approx.ftz.f64"},
    re.compile(r"engine_kernelI\S*11TensorCoresI"): {
        "fma.rn.f32", "ex2.approx.f32", "ex2.approx.ftz.f32", "div.approx.f32", "rcp.approx.ftz.f32",
    },
    # Its SiLU is the engine's, in fused operations by contract (csrc/core/activation.hpp).
    re.compile(r"group_norm_apply_kernelI"): {"fma.rn.f32", "fma.rn.f64", "rcp.approx.f32"},
}  # fmt: skip


def allowed(kernel: str) -> set[str]:
    return {opcode for pattern, opcodes in ALLOWED.items() if pattern.search(kernel) for opcode in opcodes}


def read(path: Path) -> str:
    if path.suffix in BINARY_SUFFIXES:
        return run(find_cuobjdump(), "-ptx", str(path))
    return path.read_text(errors="replace")


def check(text: str, where: str) -> tuple[int, list[str]]:
    """The number of kernels in some PTX, and what is wrong with them."""
    kernels, problems, kernel, target = 0, [], "", ""
    for line in text.splitlines():
        if match := TARGET.match(line):
            target = match[1]
        elif match := ENTRY.search(line):
            kernels, kernel = kernels + 1, match[1]
        elif match := OPCODE.match(line):
            problems += [
                f"{where}: {kernel} for {target}: {match[1]} {why}"
                for pattern, why in FORBIDDEN.items()
                if pattern.search(match[1]) and match[1] not in allowed(kernel)
            ]
    return kernels, sorted(set(problems))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="CUDA libraries, objects or PTX files"
    )
    options = parser.parse_args()
    results = [check(read(path), path.name) for path in options.paths]
    return report(
        "check_ptx", sum(n for n, _ in results), "kernels", [p for _, found in results for p in found]
    )


if __name__ == "__main__":
    sys.exit(main())
