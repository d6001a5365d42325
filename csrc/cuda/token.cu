// The kernels of qk_norm_rope and group_norm_silu, and their launchers.
#include "token.hpp"

#include "group_norm.cuh"
#include "qk_norm_rope.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

template <class C>
__global__ void __launch_bounds__(kThreads, C::kBlocks) qk_norm_rope_kernel(const __grid_constant__ QkParams params) {
  using S = typename C::S;
  __shared__ S shared[C::kShared];
  const QkThread<C> work(params, blockIdx.x, static_cast<int>(threadIdx.x));
  S mean(0), scale(1);
  if (params.args.norm == HeadNorm::kLayer) {
    work.add(shared, mean, false);
    __syncthreads();
    mean = work.total(shared) / static_cast<S>(params.args.head);
    __syncthreads();
  }
  if (params.args.norm != HeadNorm::kNone) {
    work.add(shared, mean, true);
    __syncthreads();
    scale = inverse_deviation(work.total(shared), params.args.head, params.args.eps);
  }
  work.finish(mean, scale);
}

template <class C>
__global__ void __launch_bounds__(kThreads) group_norm_sums_kernel(const __grid_constant__ GroupNormParams params) {
  __shared__ double shared[C::kShared];
  const int thread = static_cast<int>(threadIdx.x);
  GroupNormSums<C>::add(params, blockIdx.x, thread, shared);
  __syncthreads();
  GroupNormSums<C>::finish(params, blockIdx.x, thread, shared);
}

template <class T>
__global__ void __launch_bounds__(kThreads) group_norm_moments_kernel(const __grid_constant__ GroupNormParams params) {
  group_moments<T>(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

template <class C>
__global__ void __launch_bounds__(kThreads) group_norm_apply_kernel(const __grid_constant__ GroupNormParams params) {
  group_norm_apply<C>(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

cudaError_t qk_norm_rope(const QkArgs& args, cudaStream_t stream) {
  return dispatch_qk(args, [&]<class C>(C, const QkParams& params) {
    return start(&qk_norm_rope_kernel<C>, params, qk_tiles(params), stream);
  });
}

cudaError_t group_norm(const GroupNormArgs& args, cudaStream_t stream) {
  return dispatch_group_norm(args, [&]<class C>(C, const GroupNormParams& params) {
    const int64_t tiles = tiles_of(params.walk, 1);
    // All or none.
    if (!can_start(sums_tiles(params)) || !can_start(tiles)) return cudaErrorInvalidConfiguration;
    cudaError_t error = start(&group_norm_sums_kernel<C>, params, sums_tiles(params), stream);
    if (error == cudaSuccess)
      error = start(&group_norm_moments_kernel<typename C::T>, params, moments_tiles(params), stream);
    return error != cudaSuccess ? error : start(&group_norm_apply_kernel<C>, params, tiles, stream);
  });
}

}  // namespace pfc::cuda
