// adaptive_: from tensors to AdaptiveArgs. What CPU and CUDA share.
#pragma once

#include "../core/adaptive.hpp"
#include "../core/guide.hpp"
#include "tensors.hpp"

namespace pfc::ops {

struct AdaptiveCall {
  AdaptiveArgs args;
  Tensor f;  // contiguous
  explicit AdaptiveCall(const Tensor& given) : f(as_contiguous(given)) {}
};

// A tensor of numbers that the operator keeps for a solve, contiguous and of at least so many elements.
inline void check_numbers(const Tensor& tensor, const Place& place, ScalarType type, int64_t count, const char* name) {
  place.check(tensor, name);
  PFC_CHECK(tensor.is_contiguous() && tensor.scalar_type() == type && tensor.numel() >= count, name,
            " must be contiguous ", torch::headeronly::toString(type), " with at least ", count, " elements, got ",
            shape_of(tensor), " of ", torch::headeronly::toString(tensor.scalar_type()));
}

// Room for the stages, and where rows may lie inside a step for what dense output needs.
inline void check_slots(const double* table, int64_t slots, int64_t row_count) {
  const Method method{table};
  const bool dense = row_count > 2 && method.extra() > 0;
  const int64_t least = method.stages() + 1 + (dense ? method.extra() + 1 : 0);
  PFC_CHECK(slots >= least && slots < 256, "k has ", slots, " slots, the method needs ", least);
}

inline AdaptiveCall prepare_adaptive(const Tensor& f, Tensor& x, Tensor& y, OptionalTensor& inp, Tensor& t, Tensor& k,
                                     Tensor& clock, Tensor& counts, Tensor& rows, Tensor& running, Tensor& partial,
                                     OptionalTensor& steps, const OptionalTensor& home, const Tensor& times,
                                     const Tensor& table, int64_t norm_elements, int64_t max_nfe, double sign) {
  const Place place(x);
  PFC_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  PFC_CHECK(same_shape(f, y), "the field returned shape ", shape_of(f), " at points of shape ", shape_of(y));
  AdaptiveCall call(f);
  AdaptiveArgs& args = call.args;
  args.state_dtype = dtype_of(x, "x");
  const ScalarType state = x.scalar_type();
  PFC_CHECK(state == ScalarType::Float || state == ScalarType::Double, "x, the state, must be float32 or float64, got ",
            torch::headeronly::toString(state));
  args.batch = x.size(0);
  args.places = y.size(0);
  args.sample = sample_size(x);
  args.out_dtype = dtype_of(f, "f");
  place.check(f, "f");
  PFC_CHECK(sample_size(y) == args.sample && args.places <= args.batch, "y has shape ", shape_of(y), ", x has ",
            shape_of(x));
  PFC_CHECK(k.dim() >= 2 && k.size(0) == args.batch, "k must have shape [B, slots, ...], got ", shape_of(k));
  PFC_CHECK(rows.dim() >= 2 && rows.size(0) == times.numel() && rows.size(1) == args.batch,
            "rows must have shape [times, B, ...], got ", shape_of(rows));
  args.slots = k.size(1);
  args.row_count = times.numel();
  const int64_t numel = args.batch * args.sample;
  check_numbers(x, place, state, numel, "x");
  check_numbers(y, place, state, args.places * args.sample, "y");
  check_numbers(k, place, state, numel * args.slots, "k");
  check_numbers(rows, place, state, numel * args.row_count, "rows");
  check_numbers(clock, place, ScalarType::Double, args.batch * clock_record::kWidth, "clock");
  check_numbers(counts, place, ScalarType::Long, args.batch * count_record::kWidth, "counts");
  check_numbers(running, place, ScalarType::Long, 1, "running");
  check_numbers(times, place, ScalarType::Double, 2, "times");
  check_numbers(table, place, ScalarType::Double, method_record::kRows * method_record::kColumns, "table");
  check_numbers(partial, place, ScalarType::Double, 2 * args.places * guide_chunks(args.sample), "partial");
  check_numbers(t, place, t.scalar_type(), args.places, "t");
  args.t_dtype = dtype_of(t, "t");
  PFC_CHECK(norm_elements >= 0 && norm_elements <= args.sample, "norm_elements is ", norm_elements, ", a sample has ",
            args.sample);
  args.norm = norm_elements;
  args.max_nfe = max_nfe;
  args.sign = sign;
  args.f = call.f.const_data_ptr();
  args.x = x.mutable_data_ptr();
  args.y = y.mutable_data_ptr();
  if (inp) {
    check_numbers(*inp, place, inp->scalar_type(), args.places * args.sample, "inp");
    args.inp_dtype = dtype_of(*inp, "inp");
    args.inp = inp->mutable_data_ptr();
  }
  args.t = t.mutable_data_ptr();
  args.k = k.mutable_data_ptr();
  args.clock = static_cast<double*>(clock.mutable_data_ptr());
  args.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  args.rows = rows.mutable_data_ptr();
  args.running = static_cast<int64_t*>(running.mutable_data_ptr());
  args.partial = static_cast<double*>(partial.mutable_data_ptr());
  if (steps) {
    PFC_CHECK(steps->dim() == 3 && steps->size(0) == args.batch && steps->size(2) == 2,
              "steps must have shape [B, capacity, 2], got ", shape_of(*steps));
    check_numbers(*steps, place, ScalarType::Double, 0, "steps");
    args.step_count = steps->size(1);
    args.steps = static_cast<double*>(steps->mutable_data_ptr());
  }
  if (home) {
    check_numbers(*home, place, ScalarType::Long, args.places, "home");
    args.home = static_cast<const int64_t*>(home->const_data_ptr());
  } else {
    PFC_CHECK(args.places == args.batch, "home is missing: y has ", args.places, " samples, x has ", args.batch);
  }
  args.times = static_cast<const double*>(times.const_data_ptr());
  args.table = static_cast<const double*>(table.const_data_ptr());
  if (table.is_cpu()) check_slots(args.table, args.slots, args.row_count);
  return call;
}

}  // namespace pfc::ops
