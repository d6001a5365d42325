// The engine in exact float32.
#include "engine_start.cuh"

namespace pfc::cuda {

cudaError_t engine_float32(const EngineProgram& program, cudaStream_t stream) {
  return start_engine_of<ExactSmall, ExactLarge>(program, stream);
}

}  // namespace pfc::cuda
