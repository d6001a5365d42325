// The engine by the tensor cores: bf16 operands, float32 sums and states.
#include "engine_start.cuh"

namespace pfc::cuda {

cudaError_t engine_bfloat16(const EngineProgram& program, cudaStream_t stream) {
  return start_engine_of<BFloat16Small, BFloat16Large>(program, stream);
}

}  // namespace pfc::cuda
