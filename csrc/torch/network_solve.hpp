// network_solve_ and network_solve_log_prob_: the records of a solve, from tensors to AdaptiveArgs.
#pragma once

#include "../cpu/engine.hpp"
#include "../cpu/kernels.hpp"
#include "adaptive.hpp"
#include "work.hpp"

namespace pfc::ops {

// Evaluations that a solve may be expected to take, for the number of threads.
inline constexpr int64_t kEvaluations = 60;

// The states x [B, ...] of the solve with its records, checked; the elements beyond the first `norm` come along.
inline AdaptiveArgs prepare_solve(Tensor& x, Tensor& clock, Tensor& counts, Tensor& rows, const Tensor& times,
                                  const Tensor& table, int64_t slots, int64_t norm, int64_t max_nfe, double sign) {
  AdaptiveArgs solve;
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
  PFC_CHECK(norm >= 0 && norm <= solve.sample, "norm_elements is ", norm, ", a sample has ", solve.sample);
  solve.table = check_method(table);
  check_slots(solve.table, slots, solve.row_count);
  solve.slots = slots;
  solve.norm = norm;
  solve.max_nfe = max_nfe;
  solve.sign = sign;
  solve.state_dtype = dtype_of(x, "x");
  solve.x = x.mutable_data_ptr();
  solve.rows = rows.mutable_data_ptr();
  solve.clock = static_cast<double*>(clock.mutable_data_ptr());
  solve.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  solve.times = static_cast<const double*>(times.const_data_ptr());
  solve.places = solve.batch;
  if (numel > 0) check_records(solve);
  return solve;
}

}  // namespace pfc::ops
