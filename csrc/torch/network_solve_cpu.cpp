// network_solve on the CPU.
#include "../cpu/engine.hpp"
#include "adaptive.hpp"
#include "network.hpp"
#include "work.hpp"

namespace pfc::ops {

namespace {

// Evaluations that a solve may be expected to take, for the number of threads.
constexpr int64_t kEvaluations = 60;

void network_solve_(Tensor x, Tensor clock, Tensor counts, Tensor rows, OptionalTensor cond, Tensor params,
                    Tensor layers, Tensor features, Tensor times, Tensor table, int64_t slots, int64_t norm_elements,
                    int64_t max_nfe, double sign) {
  NetworkSolveArgs args;
  args.network = prepare_fused(x, "x", cond, params, layers, features);
  AdaptiveArgs& solve = args.solve;
  const Place place(x);
  solve.batch = x.size(0);
  solve.sample = sample_size(x);
  const int64_t numel = solve.batch * solve.sample;
  solve.row_count = times.numel();
  const ScalarType state = x.scalar_type();
  check_numbers(x, place, state, numel, "x");
  check_numbers(rows, place, state, numel * solve.row_count, "rows");
  check_numbers(clock, place, ScalarType::Double, solve.batch * clock_record::kWidth, "clock");
  check_numbers(counts, place, ScalarType::Long, solve.batch * count_record::kWidth, "counts");
  check_numbers(times, place, ScalarType::Double, 2, "times");
  PFC_CHECK(!cond || cond->size(0) == solve.batch, "cond has ", cond ? cond->size(0) : 0, " rows, x has ", solve.batch,
            " samples");
  PFC_CHECK(norm_elements >= 0 && norm_elements <= solve.sample, "norm_elements is ", norm_elements, ", a sample has ",
            solve.sample);
  solve.table = check_method(table);
  check_slots(solve.table, slots, solve.row_count);
  if (numel == 0) return;
  solve.slots = slots;
  solve.norm = norm_elements;
  solve.max_nfe = max_nfe;
  solve.sign = sign;
  solve.state_dtype = args.network.dtype;
  solve.x = x.mutable_data_ptr();
  solve.rows = rows.mutable_data_ptr();
  solve.clock = static_cast<double*>(clock.mutable_data_ptr());
  solve.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  solve.times = static_cast<const double*>(times.const_data_ptr());
  solve.places = solve.batch;
  check_records(solve);
  int64_t running = solve.batch;
  solve.running = &running;
  const Tensor conditions = cond ? as_contiguous(*cond) : x;
  if (cond) args.cond = conditions.const_data_ptr();
  std::atomic<int64_t> next{0};
  const cpu::EngineKernels& engine = cpu::kernels<cpu::EngineKernels>();
  const cpu::AdaptiveKernels& adaptive = cpu::kernels<cpu::AdaptiveKernels>();
  in_samples(solve.batch, samples_worth_a_thread(args.network, kEvaluations),
             [&](int64_t begin, int64_t end) { engine.network_solve(args, adaptive, next, end - begin); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { m.impl("network_solve_", TORCH_BOX(&network_solve_)); }

}  // namespace pfc::ops
