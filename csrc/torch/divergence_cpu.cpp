// network_divergence and trajectory_log_prob on the CPU.
#include "divergence.hpp"

#include <memory>

#include "../cpu/engine.hpp"
#include "work.hpp"

namespace pfc::ops {

namespace {

// An evaluation with its products costs as many as there are tangents, and one.
int64_t with_products(const Network& net, const Probes& probes) { return 1 + (probes.values ? probes.count : net.dim); }

std::tuple<Tensor, Tensor> network_divergence(Tensor x, Tensor t, OptionalTensor cond, Tensor params, Tensor layers,
                                              Tensor features, OptionalTensor probes) {
  NetworkCall call = prepare_network(x, t, cond, params, layers, features);
  DivergenceArgs args;
  args.at = call.args;
  args.probes = prepare_probes(probes, x, call.held);
  Tensor traces = new_traces(call.out, args.probes);
  args.traces = static_cast<double*>(traces.mutable_data_ptr());
  if (args.at.batch == 0) return {call.out, traces};
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  const Network& net = args.at.network;
  in_samples(args.at.batch, samples_worth_a_thread(net, with_products(net, args.probes)),
             [&](int64_t begin, int64_t end) { engine.divergence(args, begin, end); });
  return {call.out, traces};
}

std::tuple<Tensor, Tensor> trajectory_log_prob(Tensor x0, Tensor times, OptionalTensor cond, Tensor params,
                                               Tensor layers, Tensor features, Tensor table, Tensor branches,
                                               OptionalTensor probes) {
  TrajectoryCall call = prepare_trajectory(x0, times, cond, params, layers, features, table, branches, std::nullopt,
                                           std::nullopt, std::nullopt, false);
  LogDensityArgs args;
  args.path = call.args;
  check_quadrature(args.path);
  args.probes = prepare_probes(probes, x0, call.held);
  Tensor change = new_traces(call.x, args.probes);
  args.change = static_cast<double*>(change.mutable_data_ptr());
  if (args.path.batch == 0) return {call.x, change};
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  const cpu::CombineKernels& combine = cpu::kernels<cpu::CombineKernels>();
  const Network& net = args.path.network;
  const int64_t width = static_cast<int64_t>(Network::panels(net.layer[0].out)) * kPanel;
  const int64_t bytes = args.path.rows * width * (net.dtype == DType::kFloat64 ? 8 : 4);
  const std::unique_ptr<char[]> prefixes(new char[static_cast<std::size_t>(bytes)]);
  engine.time_prefixes(args.path, prefixes.get(), 0, args.path.rows);
  int64_t evaluations = 0;
  for (int64_t i = 0; i < args.path.rows; ++i) evaluations += args.path.branches[i];
  in_samples(args.path.batch, samples_worth_a_thread(net, evaluations * with_products(net, args.probes)),
             [&](int64_t begin, int64_t end) { engine.log_density(args, combine, prefixes.get(), begin, end); });
  return {call.x, change};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("network_divergence", TORCH_BOX(&network_divergence));
  m.impl("trajectory_log_prob", TORCH_BOX(&trajectory_log_prob));
}

}  // namespace pfc::ops
