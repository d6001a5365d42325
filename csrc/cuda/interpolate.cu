// interpolate's kernels and their launcher.
#include "interpolate.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

template <class C>
__global__ void __launch_bounds__(kThreads, 4) interpolate_kernel(const __grid_constant__ InterpolateParams params) {
  __shared__ typename InterpolateThread<C>::Coefficients coefficients[C::kMaxSamples];
  const int thread = static_cast<int>(threadIdx.x);
  InterpolateThread<C> work(params, blockIdx.x, thread);
  work.prepare(thread, coefficients);
  if constexpr (C::kDrawn) work.draw();
  __syncthreads();
  work.finish(coefficients);
}

}  // namespace

cudaError_t interpolate(const InterpolateArgs& args, cudaStream_t stream) {
  return dispatch_interpolate(args, [&]<class C>(C, const InterpolateParams& params, int64_t tiles) {
    return start(&interpolate_kernel<C>, params, tiles, stream);
  });
}

}  // namespace pfc::cuda
