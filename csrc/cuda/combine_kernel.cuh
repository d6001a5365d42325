// combine's kernel, and its launch for states of one type: a source file each, which spreads their compilation.
#pragma once

#include "combine.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

template <class C>
__global__ void __launch_bounds__(kThreads, C::kMinBlocks)
    combine_kernel(const __grid_constant__ CombineParams<typename C::S> params) {
  combine_thread<C>(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

template <class S>
cudaError_t start_combine(const CombineArgs& args, cudaStream_t stream) {
  return dispatch_combine<S>(args, [&]<class C>(C, const CombineParams<S>& params, int64_t tiles) {
    return start(&combine_kernel<C>, params, tiles, stream);
  });
}

}  // namespace

cudaError_t combine_float64(const CombineArgs& args, cudaStream_t stream);

}  // namespace pfc::cuda
