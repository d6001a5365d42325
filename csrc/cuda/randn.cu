// randn's kernels and their launcher.
#include "randn.cuh"
#include "start.cuh"

namespace pfc::cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) normal_kernel(const __grid_constant__ NormalParams params) {
  normal_thread<T>(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

cudaError_t normals(const NormalArgs& args, cudaStream_t stream) {
  return dispatch_normals(args, [&]<class T>(T, const NormalParams& params, int64_t tiles) {
    return start(&normal_kernel<T>, params, tiles, stream);
  });
}

#define PFC_STRING2(...) #__VA_ARGS__
#define PFC_STRING(...) PFC_STRING2(__VA_ARGS__)

const char* architectures() {
#if defined(PFC_CUDA_ARCHITECTURES)
  return PFC_CUDA_ARCHITECTURES;
#else
  return PFC_STRING(__CUDA_ARCH_LIST__);
#endif
}

}  // namespace pfc::cuda
