// adaptive_: from tensors to AdaptiveArgs. What CPU and CUDA share.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../core/adaptive.hpp"
#include "../core/guide.hpp"
#include "network.hpp"

namespace pfc::ops {

// Whether two contiguous tensors have memory in common.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& one) { return reinterpret_cast<uintptr_t>(one.const_data_ptr()); };
  const auto bytes = [](const Tensor& one) { return static_cast<uintptr_t>(one.numel()) * one.element_size(); };
  return begin(a) < begin(b) + bytes(b) && begin(b) < begin(a) + bytes(a);
}

struct AdaptiveCall {
  AdaptiveArgs args;
  Tensor f;  // contiguous, and nothing that the operator writes
  AdaptiveCall(const Tensor& given, std::initializer_list<const Tensor*> written) : f(as_contiguous(given)) {
    for (const Tensor* one : written)
      if (one != nullptr && overlap(f, *one)) {
        f = torch::stable::clone(f);  // a field may return its own argument
        return;
      }
  }
};

// A tensor of numbers that the operator keeps for a solve, contiguous and of at least so many elements.
inline void check_numbers(const Tensor& tensor, const Place& place, ScalarType type, int64_t count, const char* name) {
  place.check(tensor, name);
  PFC_CHECK(tensor.is_contiguous() && tensor.scalar_type() == type && tensor.numel() >= count, name,
            " must be contiguous ", torch::headeronly::toString(type), " with at least ", count, " elements, got ",
            shape_of(tensor), " of ", torch::headeronly::toString(tensor.scalar_type()));
}

// The method's table, in host memory: no number of it leads out of k.
inline const double* check_method(const Tensor& tensor) {
  namespace R = method_record;
  const double* table = host_table(tensor, R::kColumns, "table");
  PFC_CHECK(tensor.size(0) == R::kRows, "table must have ", R::kRows, " rows, got ", tensor.size(0));
  const auto fact = [table](int column, int64_t low, int64_t high, const char* what) {
    return whole(table[R::kFacts * R::kColumns + column], low, high, "table", R::kFacts, what);
  };
  const int64_t stages = fact(R::kStages, 1, R::kColumns - 4, "stages");
  const int64_t extra = fact(R::kExtra, 0, R::kColumns - 1 - stages, "extra stages");
  // Further stages come after an evaluation at the step's end, which the error does not wait for.
  const int64_t decides = extra > 0 ? fact(R::kDecides, 1, stages - 1, "the deciding stage")
                                    : fact(R::kDecides, stages, stages, "the deciding stage");
  fact(R::kOrder, 1, R::kColumns, "order");
  fact(R::kDenseRows, 0, R::kFacts - R::kDense, "dense rows");
  fact(R::kTwoErrors, 0, 1, "two errors");
  const auto check_row = [table](int64_t row, int64_t columns) {
    for (int64_t j = columns; j < R::kColumns; ++j)
      PFC_CHECK(table[row * R::kColumns + j] == 0.0, "table: row ", row, " has a weight in column ", j,
                ", allowed are ", columns, " columns");
  };
  for (int64_t s = 0; s <= stages + extra; ++s) check_row(R::kPoint + s, s);
  check_row(R::kError, decides + 1);
  check_row(R::kError3, decides + 1);
  return table;
}

inline void check_times(const double* times, int64_t count) {
  const double begin = times[0], end = times[count - 1];
  PFC_CHECK(is_finite(begin) && is_finite(end), "times must be finite");
  for (int64_t row = 1; row < count; ++row)
    PFC_CHECK(end > begin ? times[row] > times[row - 1] : times[row] < times[row - 1],
              "times must increase, or decrease, throughout, but go from ", times[row - 1], " to ", times[row],
              " in row ", row);
}

// The numbers that a solve keeps in the memory of the CPU; kernels of other devices leave alone what does not fit.
inline void check_records(const AdaptiveArgs& args) {
  check_times(args.times, args.row_count);
  if (args.home != nullptr) {
    std::vector<bool> taken(static_cast<size_t>(args.batch));
    for (int64_t place = 0; place < args.places; ++place) {
      const int64_t sample = args.home[place];
      PFC_CHECK(sample >= 0 && sample < args.batch, "home is ", sample, " at ", place, ", allowed are 0 to ",
                args.batch - 1);
      PFC_CHECK(!taken[static_cast<size_t>(sample)], "home is ", sample, " twice");
      taken[static_cast<size_t>(sample)] = true;
    }
  }
  const Method method{args.table};
  for (int64_t place = 0; place < args.places; ++place) {
    const int64_t sample = args.home == nullptr ? place : args.home[place];
    const int64_t* counts = args.counts + sample * count_record::kWidth;
    PFC_CHECK(counts[count_record::kStatus] != kUnfinished || adaptive_fits(args, method, sample),
              "counts and clock of sample ", sample, " are of no solve of ", args.row_count, " times by a method of ",
              method.stages(), " stages: phase ", counts[count_record::kPhase], ", nfe ", counts[count_record::kNfe],
              ", accepted ", counts[count_record::kAccepted], ", row ", counts[count_record::kRow], ", next ",
              args.clock[sample * clock_record::kWidth + clock_record::kNext]);
  }
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
  AdaptiveCall call(f, {&x, &y, inp ? &*inp : nullptr, &t, &k, &clock, &counts, &rows, &running, &partial,
                        steps ? &*steps : nullptr});
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
  args.table = check_method(table);
  check_slots(args.table, args.slots, args.row_count);
  if (x.is_cpu()) check_records(args);
  return call;
}

}  // namespace pfc::ops
