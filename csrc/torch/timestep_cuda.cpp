// timestep_features on CUDA.
#include "../cuda/token.hpp"
#include "cuda_launch.hpp"
#include "timestep.hpp"

namespace pfc::ops {

namespace {

Tensor timestep_features(Tensor t, int64_t width, double scale, double period, double last, bool sine_first,
                         ScalarType dtype) {
  const OnDevice device(t, "t");
  const TimestepCall call = prepare_timesteps(t, width, scale, period, last, sine_first, dtype);
  if (call.args.count > 0) check_launch(cuda::timesteps(call.args, device.stream()), "timestep_features");
  return call.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) { m.impl("timestep_features", TORCH_BOX(&timestep_features)); }

}  // namespace pfc::ops
