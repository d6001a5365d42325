// Host and device alike: what every header in core/ is built from.
#pragma once

#if defined(__CUDACC__)
#define PFC_HD __host__ __device__ __forceinline__
#else
#define PFC_HD inline __attribute__((always_inline))
#endif

// Loops over a row's few terms have run-time lengths; unrolling them only costs registers on a GPU.
#if defined(__CUDA_ARCH__)
#define PFC_NO_UNROLL _Pragma("unroll 1")
#else
#define PFC_NO_UNROLL
#endif
