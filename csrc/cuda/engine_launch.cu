// The engine's launcher: which kernel, and the rows that are too many to be its argument.
#include "engine_modes.hpp"
#include "launch.hpp"

namespace pfc::cuda {

cudaError_t engine_float32(const EngineProgram& program, cudaStream_t stream);
cudaError_t engine_float64(const EngineProgram& program, cudaStream_t stream);
cudaError_t engine_tf32(const EngineProgram& program, cudaStream_t stream);
cudaError_t engine_bfloat16(const EngineProgram& program, cudaStream_t stream);

namespace {

struct Words {
  uint32_t* to;
  int count;
  uint32_t word[kEngineWords];
};

__global__ void carry_kernel(const __grid_constant__ Words words) {
  for (int i = static_cast<int>(threadIdx.x); i < words.count; i += static_cast<int>(blockDim.x))
    words.to[i] = words.word[i];
}

cudaError_t carry(const std::vector<uint32_t>& all, uint32_t* to, cudaStream_t stream) {
  for (std::size_t at = 0; at < all.size(); at += kEngineWords) {
    Words words{};
    words.to = to + at;
    words.count = static_cast<int>(all.size() - at < kEngineWords ? all.size() - at : kEngineWords);
    std::memcpy(words.word, &all[at], 4 * static_cast<std::size_t>(words.count));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(256);
    config.stream = stream;
    const cudaError_t error = cudaLaunchKernelEx(&config, &carry_kernel, words);
    if (error != cudaSuccess) {
      cudaGetLastError();
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t engine_device(EngineDevice& device) {
  int number = 0, value = 0;
  cudaError_t error = cudaGetDevice(&number);
  const auto ask = [&](cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, number);
    return value;
  };
  device.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device.shared_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.shared_per_multiprocessor = ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return error;
}

bool prepare_engine(const EngineArgs& args, const EngineDevice& device, EngineProgram& program) {
  return with_modes(args, [&]<class Small, class Large>(Modes<Small, Large>) {
    return make_program<Small, Large>(args, device, program);
  });
}

cudaError_t engine(const EngineArgs& args, EngineProgram& program, void* scratch, cudaStream_t stream) {
  place_scratch(program, static_cast<char*>(scratch));
  const cudaError_t error = carry(program.words, program.params.remote, stream);
  if (error != cudaSuccess) return error;
  if (args.plan.network.dtype == DType::kFloat64) return engine_float64(program, stream);
  switch (args.precision) {
    case Precision::kTF32: return engine_tf32(program, stream);
    case Precision::kBFloat16: return engine_bfloat16(program, stream);
    default: return engine_float32(program, stream);
  }
}

}  // namespace pfc::cuda
