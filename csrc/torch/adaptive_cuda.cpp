// adaptive_ on CUDA.
#include "../cuda/launch.hpp"
#include "adaptive.hpp"
#include "cuda_launch.hpp"

namespace pfc::ops {

namespace {

void adaptive_(Tensor f, Tensor x, Tensor y, OptionalTensor inp, Tensor t, Tensor k, Tensor clock, Tensor counts,
               Tensor rows, Tensor running, Tensor partial, OptionalTensor steps, OptionalTensor home, Tensor times,
               Tensor table, int64_t norm_elements, int64_t max_nfe, double sign) {
  const OnDevice device(x, "x");
  const AdaptiveCall call = prepare_adaptive(f, x, y, inp, t, k, clock, counts, rows, running, partial, steps, home,
                                             times, table, norm_elements, max_nfe, sign);
  if (call.args.places * call.args.sample == 0) return;
  check_launch(cuda::adaptive(call.args, device.stream()), "adaptive_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) { m.impl("adaptive_", TORCH_BOX(&adaptive_)); }

}  // namespace pfc::ops
