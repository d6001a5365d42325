"""csrc/cuda compiled for the CPU: the index arithmetic, and the kernels' bodies run thread by thread.

``cuda_on_cpu.cpp`` runs every thread of every tile in an order of its own; the CPU kernels, in the same library, say what
must come out, to the bit. What is left for a GPU to prove is nvcc's code and the launch (``test_cuda*.py`` marked gpu).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from compiled import load

SOURCE = Path(__file__).with_name("cuda_on_cpu.cpp")
MAX_SLOTS, MAX_BRANCHES = 16, 8
# Around a vector, a Philox block, a warp, a block of threads (1,024 elements) and a tile of two vectors a thread.
SIZES = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    31,
    127,
    128,
    129,
    1020,
    1023,
    1024,
    1025,
    1028,
    2047,
    2048,
    2049,
    2052,
    4100,
)
COUNTS = ("batch", "sample", "state_dtype", "out_dtype", "inp_dtype", "copies", "branches")
STRIDES = ("scale_branch_stride", "scale_sample_stride")
FLAGS_OF_MIX = ("mixed", "mixes_point")
POINTERS = ("record", "x", "x_out", "point", "point_out", "inp", "keep", "scale", "seeds", "momentum")
GUIDE_COUNTS = ("batch", "sample", "state_dtype", "out_dtype", "branches")
GUIDE_POINTERS = ("rule", "point", "momentum", "scale", "partial", "mix")


class CombineCall(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in COUNTS + STRIDES + FLAGS_OF_MIX]
        + [(name, ctypes.c_void_p) for name in POINTERS]
        + [("slot", ctypes.c_void_p * MAX_SLOTS), ("branch", ctypes.c_void_p * MAX_BRANCHES)]
    )


class GuideCall(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in GUIDE_COUNTS + STRIDES]
        + [(name, ctypes.c_void_p) for name in GUIDE_POINTERS]
        + [("branch", ctypes.c_void_p * MAX_BRANCHES)]
    )


@functools.cache
def library() -> ctypes.CDLL:
    """csrc/cuda and csrc/cpu in one library for the CPU, built once in a test run."""
    loaded = load(SOURCE)
    for name in ("visits", "huge", "divider", "guide_visits"):
        getattr(loaded, f"pfc_test_{name}").restype = ctypes.c_int64
    i64, i32, pointer, real = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_double
    u32 = ctypes.c_uint32
    loaded.pfc_test_visits.argtypes = [i64, i64, i32, i32, i32, i32, pointer]
    loaded.pfc_test_huge.argtypes = [i64, i64, i32, i32, i32, i32, i64]
    loaded.pfc_test_divider.argtypes = [i64, i64, i64]
    loaded.pfc_test_guide_visits.argtypes = [i64, i64, pointer]
    loaded.pfc_test_normals.argtypes = [i64, i64, pointer, u32, u32, i32, pointer, i32]
    loaded.pfc_test_interpolate.argtypes = [
        i64, i64, i32, i32, real, real, i32, pointer, pointer, pointer, u32, u32, pointer, i32, pointer, pointer, i32,
    ]  # fmt: skip
    return loaded
