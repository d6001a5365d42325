// trajectory on the CPU.
#include <memory>

#include "../cpu/engine.hpp"
#include "trajectory.hpp"
#include "work.hpp"

namespace pfc::ops {

namespace {

std::tuple<Tensor, Tensor, Tensor> trajectory(Tensor x0, Tensor times, OptionalTensor cond, Tensor params,
                                              Tensor layers, Tensor features, Tensor table, Tensor branches,
                                              OptionalTensor guidance, OptionalTensor seeds, OptionalTensor keep_rows,
                                              bool keep_points, int64_t precision) {
  check_exact(precision);
  TrajectoryCall call = prepare_trajectory(x0, times, cond, params, layers, features, table, branches, guidance, seeds,
                                           keep_rows, keep_points);
  const TrajectoryArgs& args = call.args;
  if (args.batch == 0) return {call.x, call.states, call.points};
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  const cpu::CombineKernels& combine = cpu::kernels<cpu::CombineKernels>();
  // What the times add to layer 0 is the same for all samples: made once, read by every thread.
  const int64_t width = static_cast<int64_t>(Network::panels(args.network.layer[0].out)) * kPanel;
  const int64_t bytes = args.rows * width * (args.network.dtype == DType::kFloat64 ? 8 : 4);
  const std::unique_ptr<char[]> prefixes(new char[static_cast<std::size_t>(bytes)]);
  engine.time_prefixes(args, prefixes.get(), 0, args.rows);
  int64_t evaluations = 0;
  for (int64_t i = 0; i < args.rows; ++i) evaluations += args.branches[i];
  in_samples(args.batch, samples_worth_a_thread(args.network, evaluations),
             [&](int64_t begin, int64_t end) { engine.trajectory(args, combine, prefixes.get(), begin, end); });
  return {call.x, call.states, call.points};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { m.impl("trajectory", TORCH_BOX(&trajectory)); }

}  // namespace pfc::ops
