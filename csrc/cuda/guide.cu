// guide's kernels and their launcher.
#include "guide.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

template <class C>
__global__ void __launch_bounds__(kThreads, 2) guide_kernel(const __grid_constant__ GuideParams params) {
  __shared__ double shared[C::kShared];
  const int thread = static_cast<int>(threadIdx.x);
  const GuideThread<C> work(params, blockIdx.x, thread);
  const int sums = C::kVectors > 0 ? C::kAtOnce : guide_sums(guide_vectors(params.args));
  PFC_NO_UNROLL
  for (int sum = 0; sum < sums; sum += C::kAtOnce) {
    work.add(shared, sum);
    __syncthreads();
    GuideThread<C>::finish(params, blockIdx.x, thread, shared, sum);
    __syncthreads();
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) guide_finish_kernel(const __grid_constant__ GuideParams params) {
  __shared__ double shared[GuideFinish<S>::kShared];
  __shared__ double sums[kMaxGuideSums];
  __shared__ double work[kMaxGuideRows];
  const int thread = static_cast<int>(threadIdx.x);
  GuideFinish<S>::add(params, blockIdx.x, thread, shared);
  __syncthreads();
  GuideFinish<S>::join(params, thread, shared, sums);
  __syncthreads();
  GuideFinish<S>::solve(params, blockIdx.x, thread, sums, work);
}

template <class S>
cudaError_t start_guide(const GuideArgs& args, cudaStream_t stream) {
  return dispatch_guide<S>(args, [&]<class C>(C, const GuideParams& params) {
    // Both or neither: the first moves the momentum.
    if (!can_start(guide_tiles(params)) || !can_start(args.batch)) return cudaErrorInvalidConfiguration;
    const cudaError_t error = start(&guide_kernel<C>, params, guide_tiles(params), stream);
    return error != cudaSuccess ? error : start(&guide_finish_kernel<S>, params, args.batch, stream);
  });
}

}  // namespace

cudaError_t guide(const GuideArgs& args, cudaStream_t stream) {
  return args.state_dtype == DType::kFloat64 ? start_guide<double>(args, stream) : start_guide<float>(args, stream);
}

}  // namespace pfc::cuda
