// The engine by the tensor cores: tf32 operands, float32 sums and states.
#include "engine_start.cuh"

namespace pfc::cuda {

cudaError_t engine_tf32(const EngineProgram& program, cudaStream_t stream) {
  return start_engine_of<TF32Small, TF32Large>(program, stream);
}

}  // namespace pfc::cuda
