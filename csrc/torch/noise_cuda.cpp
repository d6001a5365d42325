// randn and interpolate on CUDA, and what Python asks of the library itself.
#include "../cuda/launch.hpp"
#include "cuda_launch.hpp"
#include "noise.hpp"

namespace pfc::ops {

namespace {

Tensor randn(Tensor seeds, std::vector<int64_t> shape, int64_t stream, int64_t draw, ScalarType dtype) {
  const OnDevice device(seeds, "seeds");
  const NormalCall call = prepare_randn(seeds, shape, stream, draw, dtype);
  if (call.args.batch * call.args.sample > 0) check_launch(cuda::normals(call.args, device.stream()), "randn");
  return call.out;
}

std::tuple<Tensor, Tensor> interpolate(Tensor data, Tensor t, OptionalTensor x0, OptionalTensor seeds, int64_t path,
                                       double path_a, double path_b, int64_t prediction, int64_t stream, int64_t draw) {
  const OnDevice device(data, "data");
  const InterpolateCall call = prepare_interpolate(data, t, x0, seeds, path, path_a, path_b, prediction, stream, draw);
  if (call.args.batch * call.args.sample > 0)
    check_launch(cuda::interpolate(call.args, device.stream()), "interpolate");
  return {call.point, call.target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) {
  m.impl("randn", TORCH_BOX(&randn));
  m.impl("interpolate", TORCH_BOX(&interpolate));
}

}  // namespace pfc::ops

// For Python's info(), by ctypes. Versions are 1000 major + 10 minor.
extern "C" {
// Of the CUDA toolkit that the library was built with.
__attribute__((visibility("default"))) int pyflowcore_cuda_toolkit_version() { return CUDART_VERSION; }
// The newest CUDA that this machine's driver serves; 0 if there is no driver.
__attribute__((visibility("default"))) int pyflowcore_cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
// The architectures that the library has code for.
__attribute__((visibility("default"))) const char* pyflowcore_cuda_archs() { return pfc::cuda::architectures(); }
}
