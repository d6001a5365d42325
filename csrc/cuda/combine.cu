// combine for float32 states, and the launcher.
#include "combine_kernel.cuh"

namespace pfc::cuda {

cudaError_t combine(const CombineArgs& args, cudaStream_t stream) {
  return args.state_dtype == DType::kFloat64 ? combine_float64(args, stream) : start_combine<float>(args, stream);
}

}  // namespace pfc::cuda
