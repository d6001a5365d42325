// The kernels of patchify and unpatchify, and their launcher.
#include "patches.cuh"

#include "start.cuh"
#include "token.hpp"

namespace pfc::cuda {

namespace {

template <class C>
__global__ void __launch_bounds__(kThreads) patches_kernel(const __grid_constant__ PatchParams params) {
  move_patches<C>(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

cudaError_t patches(const PatchArgs& args, cudaStream_t stream) {
  return dispatch_patches(args, [&]<class C>(C, const PatchParams& params, int64_t tiles) {
    return start(&patches_kernel<C>, params, tiles, stream);
  });
}

}  // namespace pfc::cuda
