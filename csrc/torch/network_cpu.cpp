// network on the CPU.
#include "../cpu/engine.hpp"
#include "network.hpp"
#include "work.hpp"

namespace pfc::ops {

namespace {

Tensor network(Tensor x, Tensor t, OptionalTensor cond, Tensor params, Tensor layers, Tensor features,
               int64_t precision) {
  check_exact(precision);
  NetworkCall call = prepare_network(x, t, cond, params, layers, features);
  const NetworkArgs& args = call.args;
  if (args.batch == 0) return call.out;
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  in_samples(args.batch, samples_worth_a_thread(args.network, 1),
             [&](int64_t begin, int64_t end) { engine.network(args, begin, end); });
  return call.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { m.impl("network", TORCH_BOX(&network)); }

}  // namespace pfc::ops
