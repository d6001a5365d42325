// The kernels of transformer blocks and their launchers.
#include "block.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

// Lane l and l + 64, l + 32, ...: with the thread 16, 8, ... further on; every thread gets the whole.
template <class S>
__device__ S warp_sum(Pack<S, kItem> sum) {
  PFC_FULL_UNROLL
  for (int apart = kRowThreads / 2; apart > 0; apart /= 2) {
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) sum.v[e] = sum.v[e] + __shfl_xor_sync(0xffffffffu, sum.v[e], apart);
  }
  return lanes_joined(sum);
}

template <class C>
__global__ void __launch_bounds__(kThreads) block_norm_kernel(const __grid_constant__ NormParams params) {
  using S = typename C::S;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kBlockRows + thread / kRowThreads;
  if (row >= params.args.rows) return;  // a whole warp
  NormThread<C> work(params, row, thread);
  const Pack<S, kItem> first = work.take();
  if (params.args.out == nullptr) return;
  S center = S(0), sum = S(0), squares = warp_sum(first);
  if (!params.args.rms) {
    center = row_mean(squares, params.args.width);
    Pack<S, kItem> sums, of_squares;
    work.deviate(center, sums, of_squares);
    sum = warp_sum(sums);
    squares = warp_sum(of_squares);
  }
  work.finish(row_norm(params.args, center, sum, squares));
}

template <class C>
__global__ void __launch_bounds__(kThreads) block_gated_kernel(const __grid_constant__ GatedParams params) {
  GatedThread<C>::run(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

cudaError_t block_norm(const NormArgs& args, cudaStream_t stream) {
  return dispatch_norm(args, [&]<class C>(C, const NormParams& params) {
    return start(&block_norm_kernel<C>, params, norm_tiles(args), stream);
  });
}

cudaError_t block_gated(const GatedArgs& args, cudaStream_t stream) {
  return dispatch_gated(args, [&]<class C>(C, const GatedParams& params, int64_t tiles) {
    return start(&block_gated_kernel<C>, params, tiles, stream);
  });
}

}  // namespace pfc::cuda
