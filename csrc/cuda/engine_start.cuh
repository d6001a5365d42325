// The engine's kernel, and how it is started.
#pragma once

#include "engine_modes.hpp"
#include "launch.hpp"

namespace pfc::cuda {

namespace {

template <class Mode>
struct DeviceRun {
  const EngineParams& p;
  char* shared;
  mutable int slot = 0;

  __device__ Engine<Mode> engine() const {
    return Engine<Mode>(p, shared, blockIdx.x, static_cast<int>(threadIdx.x), slot);
  }
  template <class Phase>
  __device__ void operator()(const Phase& phase) const {
    phase(engine());
    __syncthreads();
  }
  __device__ void layer(int l, int j) const {
    Mode::layer(engine(), l, j);
    __syncthreads();
  }
};

template <class Mode, bool kSingle>
__global__ void __launch_bounds__(Mode::kThreads, Mode::kBlocks)
    engine_kernel(const __grid_constant__ EngineParams params) {
  extern __shared__ __align__(128) char shared[];
  engine_block<Mode, kSingle>(params, DeviceRun<Mode>{params, shared});
}

// Layers' weights as the mode's fragments, a row of blocks for each layer.
template <class Mode>
__global__ void __launch_bounds__(256) pack_kernel(const __grid_constant__ EngineParams params) {
  const int l = static_cast<int>(blockIdx.y), warp = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32);
  if (params.layer[l].resident.shared) return;
  auto* to = reinterpret_cast<typename Mode::Weights*>(params.packed + params.layer[l].packed);
  Mode::pack_weights(params, l, to, warp, static_cast<int>(gridDim.x * 8), static_cast<int>(threadIdx.x % 32));
}

template <class Mode, bool kSingle>
cudaError_t start_engine(const EngineProgram& program, cudaStream_t stream) {
  const auto kernel = &engine_kernel<Mode, kSingle>;
  const auto bytes = static_cast<std::size_t>(program.shared_bytes);
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  cudaLaunchConfig_t config{};
  if constexpr (Mode::kPacks) {
    if (error == cudaSuccess && program.packed_bytes > 0) {
      config.gridDim = dim3(32, static_cast<unsigned>(program.params.layers));
      config.blockDim = dim3(256);
      config.stream = stream;
      error = cudaLaunchKernelEx(&config, &pack_kernel<Mode>, program.params);
    }
  }
  if (error == cudaSuccess) {
    config.gridDim = dim3(static_cast<unsigned>(program.params.blocks));
    config.blockDim = dim3(Mode::kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, program.params);
  }
  // A failed launch is reported once, here, and not to whoever asks for the last error next.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <class Small, class Large>
cudaError_t start_engine_of(const EngineProgram& program, cudaStream_t stream) {
  if (program.single)
    return program.large ? start_engine<Large, true>(program, stream) : start_engine<Small, true>(program, stream);
  return program.large ? start_engine<Large, false>(program, stream) : start_engine<Small, false>(program, stream);
}

}  // namespace

}  // namespace pfc::cuda
