// How a kernel is started: a block of kThreads for every tile.
#pragma once

#include <cstdint>
#include <limits>

#include "launch.hpp"
#include "walk.hpp"

namespace pfc::cuda {

// A grid has at most 2^31 - 1 blocks. Tiles of 1,024 elements or more reach that in no memory there is; guide_'s second
// kernel, whose tile is a sample of any size, could.
inline bool can_start(int64_t tiles) { return tiles <= std::numeric_limits<int32_t>::max(); }

template <class Params>
cudaError_t start(void (*kernel)(Params), const Params& params, int64_t tiles, cudaStream_t stream) {
  if (!can_start(tiles)) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(tiles));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params);
  // A failed launch is reported once, here, and not to whoever asks for the last error next.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace pfc::cuda
