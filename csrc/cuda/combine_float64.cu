// combine for float64 states.
#include "combine_kernel.cuh"

namespace pfc::cuda {

cudaError_t combine_float64(const CombineArgs& args, cudaStream_t stream) {
  return start_combine<double>(args, stream);
}

}  // namespace pfc::cuda
