"""The ceiling on the rate of operations: a large square matrix product in the precision and at the thread count of the case."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.registry import Arm

MATRIX = {"cpu": 2048, "cuda": 8192}


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Products of float32 matrices in TF32 or exactly, on CUDA."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def in_precision(precision: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call``, with TF32 switched on around it where ``precision`` is "tf32"."""
    if precision != "tf32":
        return call

    def within() -> Any:
        with tf32(True):
            return call()

    return within


def matrix_arm(device: str, precision: str = "float32") -> Arm:
    """torch.mm of two square matrices, 2048 on a CPU and 8192 on CUDA."""
    size = MATRIX[device]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    call = functools.partial(torch.mm, a, b, out=torch.empty_like(a))
    return Arm(f"matrix product {size}", "ceiling", [in_precision(precision, call)], operations=2 * size**3)
