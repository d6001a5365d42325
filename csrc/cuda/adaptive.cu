// adaptive_'s kernels and their launcher.
#include "adaptive.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) adaptive_sums_kernel(const __grid_constant__ AdaptiveParams params) {
  __shared__ double shared[kAdaptiveShared];
  const int thread = static_cast<int>(threadIdx.x);
  T(params, blockIdx.x, thread).add(shared);
  __syncthreads();
  T::finish(params, blockIdx.x, thread, shared);
}

// Two blocks a multiprocessor are said because ptxas, left to itself, aims for 40 registers on sm_80 and then needs a stack.
__global__ void __launch_bounds__(kThreads, 2) adaptive_control_kernel(const __grid_constant__ AdaptiveParams params) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (AdaptiveDecision::run(params, place))
    atomicAdd(reinterpret_cast<unsigned long long*>(params.args.running), ~0ull);
}

template <class T>
__global__ void __launch_bounds__(kThreads) adaptive_apply_kernel(const __grid_constant__ AdaptiveParams params) {
  T(params, blockIdx.x, static_cast<int>(threadIdx.x)).apply();
}

template <class S>
cudaError_t start_adaptive(const AdaptiveArgs& args, cudaStream_t stream) {
  return dispatch_adaptive<S>(args, [&]<class T>(std::type_identity<T>, const AdaptiveParams& params) {
    // All or none.
    if (!can_start(adaptive_tiles(params))) return cudaErrorInvalidConfiguration;
    cudaError_t error = start(&adaptive_sums_kernel<T>, params, adaptive_tiles(params), stream);
    if (error != cudaSuccess) return error;
    error = start(&adaptive_control_kernel, params, (args.places + kThreads - 1) / kThreads, stream);
    if (error != cudaSuccess) return error;
    return start(&adaptive_apply_kernel<T>, params, adaptive_tiles(params), stream);
  });
}

}  // namespace

cudaError_t adaptive(const AdaptiveArgs& args, cudaStream_t stream) {
  return args.state_dtype == DType::kFloat64 ? start_adaptive<double>(args, stream)
                                             : start_adaptive<float>(args, stream);
}

}  // namespace pfc::cuda
