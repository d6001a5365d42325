// The engine in float64.
#include "engine_start.cuh"

namespace pfc::cuda {

cudaError_t engine_float64(const EngineProgram& program, cudaStream_t stream) {
  return start_engine_of<DoubleSmall, DoubleLarge>(program, stream);
}

}  // namespace pfc::cuda
