// timestep_features on the CPU.
#include "timestep.hpp"

#include "../cpu/token.hpp"
#include "token.hpp"

namespace pfc::ops {

namespace {

Tensor timestep_features(Tensor t, int64_t width, double scale, double period, double last, bool sine_first,
                         ScalarType dtype) {
  const TimestepCall call = prepare_timesteps(t, width, scale, period, last, sine_first, dtype);
  const TimestepArgs& args = call.args;
  const auto& kernels = cpu::kernels<cpu::TokenKernels>();
  // A sine or a cosine takes as long as some eight elements of a pass over memory.
  if (args.count > 0)
    in_units(args.count, 16 * args.half, [&](int64_t begin, int64_t end) { kernels.timesteps(args, begin, end); });
  return call.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { m.impl("timestep_features", TORCH_BOX(&timestep_features)); }

}  // namespace pfc::ops
