// network_solve_ and network_solve_log_prob_ on the CPU.
#include "network_solve.hpp"

#include "divergence.hpp"
#include "network.hpp"

namespace pfc::ops {

namespace {

void check_condition_rows(const OptionalTensor& cond, int64_t batch) {
  PFC_CHECK(!cond || cond->size(0) == batch, "cond has ", cond ? cond->size(0) : 0, " rows, x has ", batch, " samples");
}

void network_solve_(Tensor x, Tensor clock, Tensor counts, Tensor rows, OptionalTensor cond, Tensor params,
                    Tensor layers, Tensor features, Tensor times, Tensor table, int64_t slots, int64_t norm_elements,
                    int64_t max_nfe, double sign) {
  NetworkSolveArgs args;
  args.network = prepare_fused(x, "x", cond, params, layers, features);
  args.solve = prepare_solve(x, clock, counts, rows, times, table, slots, norm_elements, max_nfe, sign);
  check_condition_rows(cond, args.solve.batch);
  if (args.solve.batch == 0) return;
  int64_t running = args.solve.batch;
  args.solve.running = &running;
  const Tensor conditions = cond ? as_contiguous(*cond) : x;
  if (cond) args.cond = conditions.const_data_ptr();
  std::atomic<int64_t> next{0};
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  const cpu::AdaptiveKernels& adaptive = cpu::kernels<cpu::AdaptiveKernels>();
  in_samples(args.solve.batch, samples_worth_a_thread(args.network, kEvaluations),
             [&](int64_t begin, int64_t end) { engine.network_solve(args, adaptive, next, end - begin); });
}

// [count, B, dim] of the network's dtype.
Probes prepare_flat_probes(const Tensor& values, const Tensor& params, int64_t batch) {
  PFC_CHECK(values.dim() == 3 && values.size(0) >= 1 && values.size(1) == batch, "probes must have shape [count, ",
            batch, ", elements], got ", shape_of(values));
  check_numbers(values, Place(params), params.scalar_type(), values.numel(), "probes");
  Probes probes;
  probes.values = values.const_data_ptr();
  probes.count = values.size(0);
  return probes;
}

void network_solve_log_prob_(Tensor x, Tensor clock, Tensor counts, Tensor rows, OptionalTensor cond, Tensor params,
                             Tensor layers, Tensor features, OptionalTensor probes, Tensor times, Tensor table,
                             int64_t slots, int64_t max_nfe, double sign) {
  PFC_CHECK(x.dim() == 2 && x.scalar_type() == ScalarType::Double,
            "x must be float64 [B, elements and integrals], got ", torch::headeronly::toString(x.scalar_type()), " ",
            shape_of(x));
  DensitySolveArgs args;
  if (probes) args.probes = prepare_flat_probes(*probes, params, x.size(0));
  const int64_t dim = x.size(1) - args.probes.estimates();
  PFC_CHECK(dim >= 1 && (!probes || probes->size(2) == dim), "x has ", x.size(1), " columns, which must be the ",
            probes ? probes->size(2) : 1, " elements or more of a sample and ", args.probes.estimates(), " integrals");
  args.at.network = prepare_packed(Place(x), params.scalar_type(), "params", dim, cond, params, layers, features);
  args.at.solve = prepare_solve(x, clock, counts, rows, times, table, slots, dim, max_nfe, sign);
  check_condition_rows(cond, args.at.solve.batch);
  if (args.at.solve.batch == 0) return;
  int64_t running = args.at.solve.batch;
  args.at.solve.running = &running;
  const Tensor conditions = cond ? as_contiguous(*cond) : x;
  if (cond) args.at.cond = conditions.const_data_ptr();
  std::atomic<int64_t> next{0};
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  const cpu::AdaptiveKernels& adaptive = cpu::kernels<cpu::AdaptiveKernels>();
  const int64_t evaluations = kEvaluations * with_products(args.at.network, args.probes);
  in_samples(args.at.solve.batch, samples_worth_a_thread(args.at.network, evaluations),
             [&](int64_t begin, int64_t end) { engine.density_solve(args, adaptive, next, end - begin); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("network_solve_", TORCH_BOX(&network_solve_));
  m.impl("network_solve_log_prob_", TORCH_BOX(&network_solve_log_prob_));
}

}  // namespace pfc::ops
