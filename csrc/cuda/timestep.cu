// The kernel of timestep_features, and its launcher.
#include "timestep.cuh"

#include "start.cuh"
#include "token.hpp"

namespace pfc::cuda {

namespace {

template <class O>
__global__ void __launch_bounds__(kThreads) timestep_kernel(const __grid_constant__ TimestepParams params) {
  timestep_features<O>(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

cudaError_t timesteps(const TimestepArgs& args, cudaStream_t stream) {
  return dispatch_timesteps(args, [&]<class O>(O, const TimestepParams& params, int64_t tiles) {
    return start(&timestep_kernel<O>, params, tiles, stream);
  });
}

}  // namespace pfc::cuda
