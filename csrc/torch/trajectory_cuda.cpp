// trajectory on CUDA.
#include "trajectory.hpp"

#include "engine_cuda.hpp"

namespace pfc::ops {

namespace {

std::tuple<Tensor, Tensor, Tensor> trajectory(Tensor x0, Tensor times, OptionalTensor cond, Tensor params,
                                              Tensor layers, Tensor features, Tensor table, Tensor branches,
                                              OptionalTensor guidance, OptionalTensor seeds, OptionalTensor keep_rows,
                                              bool keep_points, int64_t precision) {
  const OnDevice device(x0, "x0");
  const Tensor weights = aligned_params(params);
  const TrajectoryCall call = prepare_trajectory(x0, times, cond, weights, layers, features, table, branches, guidance,
                                                 seeds, keep_rows, keep_points);
  const auto args = cuda::engine_args(call.args, engine_precision(precision, call.args.network.dtype));
  run_engine(args, device, call.x, "trajectory");
  return {call.x, call.states, call.points};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) { m.impl("trajectory", TORCH_BOX(&trajectory)); }

}  // namespace pfc::ops
