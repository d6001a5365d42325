// combine_ and combine: from tensors to CombineArgs. What CPU and CUDA share; they differ in `run`.
#pragma once

#include <cmath>
#include <vector>

#include "tensors.hpp"

namespace pfc::ops {

// Keeps what a call borrowed or copied alive until the kernel has it.
struct CombineCall {
  CombineArgs args;
  std::vector<Tensor> held;

  const void* hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back().const_data_ptr();
  }
};

inline const double* row_record(const Tensor& table, int64_t row, bool single) {
  PFC_CHECK(table.is_cpu(), "table must be on the CPU: its rows travel as kernel arguments");
  PFC_CHECK(table.scalar_type() == ScalarType::Double && table.dim() == 2 && table.size(1) == record::kWidth &&
                table.is_contiguous(),
            "table must be contiguous float64 of shape [rows, ", record::kWidth, "], got shape ", shape_of(table));
  PFC_CHECK(row >= 0 && row < table.size(0), "row is ", row, ", the table has ", table.size(0));
  const double* rec = static_cast<const double*>(table.const_data_ptr()) + row * record::kWidth;
  for (int i = 0; i < record::kWidth; ++i)
    PFC_CHECK(single ? std::isfinite(static_cast<float>(rec[i])) : std::isfinite(rec[i]), "table: row ", row,
              " has a coefficient that is not finite in the state's dtype (column ", i, ": ", rec[i], ")");
  PFC_CHECK(rec[record::kStore] >= -1.0 && rec[record::kStore] < kMaxSlots, "table: row ", row, " stores into slot ",
            rec[record::kStore], ", allowed are -1 to ", kMaxSlots - 1);
  for (int n = 0; n < kMaxDraws; ++n)
    PFC_CHECK((rec[record::kS + n] == 0.0 && rec[record::kR + n] == 0.0) ||
                  (rec[record::kDraw + n] >= 0.0 && rec[record::kDraw + n] <= 4294967295.0),
              "table: row ", row, " names draw ", rec[record::kDraw + n], ", allowed are 0 to 2^32 - 1");
  return rec;
}

// The state, the row and its seeds. Everything else is checked against the state.
inline void set_state(CombineCall& call, const Tensor& x, const OptionalTensor& seeds, const Tensor& table,
                      int64_t row) {
  CombineArgs& args = call.args;
  PFC_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  args.state_dtype = dtype_of(x, "x");
  PFC_CHECK(args.state_dtype == DType::kFloat32 || args.state_dtype == DType::kFloat64,
            "x, the state, must be float32 or float64, got ", torch::headeronly::toString(x.scalar_type()));
  args.batch = x.size(0);
  args.sample = sample_size(x);
  args.record = row_record(table, row, args.state_dtype == DType::kFloat32);
  bool draws = false;
  for (int n = 0; n < kMaxDraws; ++n)
    draws = draws || args.record[record::kS + n] != 0.0 || args.record[record::kR + n] != 0.0;
  if (!draws) return;
  PFC_CHECK(seeds.has_value(), "seeds: row ", row, " draws noise and needs them, got None");
  Place(x).check(*seeds, "seeds");
  check_batch_seeds(*seeds, args.batch);
  args.seeds = static_cast<const int64_t*>(call.hold(*seeds));
}

// The branches of the field's output, the unconditional one last.
inline void add_branches(CombineCall& call, const Tensor& x, const std::vector<Tensor>& outs) {
  CombineArgs& args = call.args;
  args.out_dtype = dtype_of(outs[0], "out");
  for (const Tensor& out : outs) {
    Place(x).check(out, "out");
    PFC_CHECK(dtype_of(out, "out") == args.out_dtype, "out: the branches must have one dtype");
    const int64_t stacked = copies_of(out, x, "out");
    PFC_CHECK(args.branches + stacked <= kMaxBranches, "out: at most ", kMaxBranches, " branches, got ",
              args.branches + stacked);
    const char* data = static_cast<const char*>(call.hold(out));
    const int64_t bytes = args.batch * args.sample * static_cast<int64_t>(out.element_size());
    for (int64_t j = 0; j < stacked; ++j) args.branch[args.branches++] = data + j * bytes;
  }
}

inline void set_branches(CombineCall& call, const Tensor& x, const std::vector<Tensor>& outs) {
  CombineArgs& args = call.args;
  const bool evaluates = args.record[record::kEvaluates] != 0.0;
  // With q = 0 the prediction comes from the point alone.
  PFC_CHECK(!evaluates || !outs.empty() || args.record[record::kQ] == 0.0,
            "out: the row evaluates the field and needs its output, got None");
  PFC_CHECK(evaluates || outs.empty(), "out: the row does not evaluate the field, got an output");
  if (!outs.empty()) add_branches(call, x, outs);
}

// guidance [rows, B or 1] (one scale for all conditional branches) or [rows, branches - 1, B or 1].
inline void set_guidance(CombineCall& call, const Tensor& x, const OptionalTensor& guidance, int64_t rows,
                         int64_t row) {
  CombineArgs& args = call.args;
  if (args.branches < 2) return;
  PFC_CHECK(guidance.has_value(), "guidance: ", args.branches, " branches need a scale, got None");
  const Tensor& g = *guidance;
  Place(x).check(g, "guidance");
  PFC_CHECK(g.scalar_type() == x.scalar_type(), "guidance must have the state's dtype, got ",
            torch::headeronly::toString(g.scalar_type()), " for a state of ",
            torch::headeronly::toString(x.scalar_type()));
  const bool per_branch = g.dim() == 3;
  const int64_t last = g.dim() > 0 ? g.size(g.dim() - 1) : 0;
  PFC_CHECK((g.dim() == 2 || per_branch) && g.size(0) == rows && (last == 1 || last == args.batch) &&
                (!per_branch || g.size(1) == args.branches - 1),
            "guidance must have shape [", rows, ", 1 or ", args.batch, "] or [", rows, ", ", args.branches - 1,
            ", 1 or ", args.batch, "], got ", shape_of(g));
  const int64_t width = per_branch ? g.size(1) * last : last;
  args.scale = static_cast<const char*>(call.hold(g)) + row * width * static_cast<int64_t>(g.element_size());
  args.scale_branch_stride = per_branch ? last : 0;
  args.scale_sample_stride = last == 1 ? 0 : 1;
}

inline void check_like_state(const Tensor& tensor, const Tensor& x, const char* name) {
  Place(x).check(tensor, name);
  PFC_CHECK(same_shape(tensor, x), name, " has shape ", shape_of(tensor), ", the state has ", shape_of(x));
  PFC_CHECK(tensor.scalar_type() == x.scalar_type(), name, " has dtype ",
            torch::headeronly::toString(tensor.scalar_type()), ", the state has ",
            torch::headeronly::toString(x.scalar_type()));
}

// mix [branches + 1 (+ 1 with the point), B], and the momentum that takes the first difference's place: core/guide.hpp.
inline void set_mix(CombineCall& call, const Tensor& x, const Tensor& mix, const OptionalTensor& momentum) {
  CombineArgs& args = call.args;
  if (args.batch == 0) return;
  PFC_CHECK(args.branches >= 2, "mix: weights are for two branches or more, got ", args.branches);
  Place(x).check(mix, "mix");
  const int64_t rows = mix.dim() == 2 ? mix.size(0) : 0;
  PFC_CHECK(mix.scalar_type() == x.scalar_type() && mix.is_contiguous() &&
                (rows == args.branches + 1 || rows == args.branches + 2) && mix.size(1) == args.batch,
            "mix must be contiguous [", args.branches + 1, " or ", args.branches + 2, ", ", args.batch,
            "] of the state's dtype, got ", shape_of(mix), " of ", torch::headeronly::toString(mix.scalar_type()));
  args.mixed = true;
  args.mixes_point = rows > args.branches + 1;
  args.scale = mix.const_data_ptr();
  args.scale_branch_stride = args.batch;
  args.scale_sample_stride = 1;
  if (!momentum) return;
  check_like_state(*momentum, x, "m");
  PFC_CHECK(args.branches == 2, "m: a momentum is for two branches, got ", args.branches);
  args.momentum = call.hold(*momentum);
}

// Everything but the weights of the branches.
inline CombineCall prepare_row_(Tensor& x, const OptionalTensor& y, OptionalTensor& y_out, OptionalTensor& inp,
                                OptionalTensor& slots, const OptionalTensor& out, const OptionalTensor& out2,
                                const OptionalTensor& seeds, const Tensor& table, int64_t row) {
  CombineCall call;
  CombineArgs& args = call.args;
  check_written(x, "x");
  set_state(call, x, seeds, table, row);
  args.x = args.x_out = x.mutable_data_ptr();
  args.point = args.x;
  if (y) {
    check_like_state(*y, x, "y");
    args.point = call.hold(*y);
  }
  if (y_out) {
    check_like_state(*y_out, x, "y_out");
    check_written(*y_out, "y_out");
    args.point_out = y_out->mutable_data_ptr();
  }
  if (inp) {
    Place(x).check(*inp, "inp");
    check_written(*inp, "inp");
    args.inp_dtype = dtype_of(*inp, "inp");
    args.copies = copies_of(*inp, x, "inp");
    args.inp = inp->mutable_data_ptr();
  }
  int64_t count = 0;
  if (slots) {
    Place(x).check(*slots, "slots");
    check_written(*slots, "slots");
    PFC_CHECK(slots->scalar_type() == x.scalar_type() && slots->dim() == x.dim() + 1 && slots->size(0) <= kMaxSlots &&
                  slots->numel() == slots->size(0) * x.numel(),
              "slots must be [K, ...the state's shape] of the state's dtype with K at most ", kMaxSlots, ", got ",
              shape_of(*slots), " for a state of ", shape_of(x));
    count = slots->size(0);
    char* base = static_cast<char*>(slots->mutable_data_ptr());
    const int64_t bytes = args.batch * args.sample * static_cast<int64_t>(x.element_size());
    for (int64_t k = 0; k < count; ++k) args.slot[k] = base + k * bytes;
    const int store = static_cast<int>(args.record[record::kStore]);
    if (store >= 0 && store < count) args.keep = base + store * bytes;
  }
  const auto store = static_cast<int64_t>(args.record[record::kStore]);
  PFC_CHECK(store < count, "slots: row ", row, " writes slot ", store, ", there are ", count);
  PFC_CHECK(store < 0 || (args.record[record::kB + store] == 0.0 && args.record[record::kE + store] == 0.0),
            "slots: row ", row, " reads and writes slot ", store, " in place");
  for (int64_t k = count; k < kMaxSlots; ++k)
    PFC_CHECK(args.record[record::kB + k] == 0.0 && args.record[record::kE + k] == 0.0, "slots: row ", row,
              " reads slot ", k, ", there are ", count);
  std::vector<Tensor> outs;
  if (out) outs.push_back(*out);
  PFC_CHECK(!out2 || out, "out2 was given without out");
  if (out2) outs.push_back(*out2);
  set_branches(call, x, outs);
  return call;
}

inline CombineCall prepare_combine_(Tensor& x, const OptionalTensor& y, OptionalTensor& y_out, OptionalTensor& inp,
                                    OptionalTensor& slots, const OptionalTensor& out, const OptionalTensor& out2,
                                    const OptionalTensor& guidance, const OptionalTensor& seeds, const Tensor& table,
                                    int64_t row) {
  CombineCall call = prepare_row_(x, y, y_out, inp, slots, out, out2, seeds, table, row);
  set_guidance(call, x, guidance, table.size(0), row);
  return call;
}

inline CombineCall prepare_combine_mixed_(Tensor& x, const OptionalTensor& y, OptionalTensor& y_out,
                                          OptionalTensor& inp, OptionalTensor& slots, const Tensor& out,
                                          const OptionalTensor& out2, const Tensor& mix, const OptionalTensor& momentum,
                                          const OptionalTensor& seeds, const Tensor& table, int64_t row) {
  CombineCall call = prepare_row_(x, y, y_out, inp, slots, out, out2, seeds, table, row);
  set_mix(call, x, mix, momentum);
  return call;
}

struct CombineResult {
  Tensor x, y, d;
};

// The functional twin: new tensors for the state, the next point (in the state's dtype, not scaled) and the prediction.
inline CombineCall prepare_combine(CombineResult& result, const Tensor& x, const OptionalTensor& y,
                                   const std::vector<Tensor>& slots, const std::vector<Tensor>& outs,
                                   const OptionalTensor& guidance, const OptionalTensor& seeds, const Tensor& table,
                                   int64_t row) {
  CombineCall call;
  CombineArgs& args = call.args;
  set_state(call, x, seeds, table, row);
  args.x = args.point = call.hold(x);
  if (y) {
    check_like_state(*y, x, "y");
    args.point = call.hold(*y);
  }
  for (std::size_t k = 0; k < slots.size() && k < kMaxSlots; ++k) {
    check_like_state(slots[k], x, "slots");
    args.slot[k] = call.hold(slots[k]);
  }
  for (int64_t k = static_cast<int64_t>(slots.size()); k < kMaxSlots; ++k)
    PFC_CHECK(args.record[record::kB + k] == 0.0 && args.record[record::kE + k] == 0.0, "slots: row ", row,
              " reads slot ", k, ", there are ", slots.size());
  set_branches(call, x, outs);
  set_guidance(call, x, guidance, table.size(0), row);
  const Tensor like = as_contiguous(x);
  result = {torch::stable::empty_like(like), torch::stable::empty_like(like), torch::stable::empty_like(like)};
  args.x_out = result.x.mutable_data_ptr();
  args.point_out = result.y.mutable_data_ptr();
  if (args.record[record::kEvaluates] != 0.0)
    args.keep = result.d.mutable_data_ptr();
  else
    torch::stable::zero_(result.d);  // no evaluation, no prediction
  return call;
}

}  // namespace pfc::ops
