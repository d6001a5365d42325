// guide_: from tensors to GuideArgs. What CPU and CUDA share.
#pragma once

#include "../core/guide.hpp"
#include "combine.hpp"

namespace pfc::ops {

struct GuideCall {
  GuideArgs args;
  CombineCall held;
};

inline GuideRule rule_of(const Tensor& rules, int64_t row) {
  PFC_CHECK(rules.is_cpu() && rules.scalar_type() == ScalarType::Double && rules.dim() == 2 &&
                rules.size(1) == rule_record::kWidth && rules.is_contiguous(),
            "rules must be contiguous float64 of shape [rows, ", rule_record::kWidth, "] on the CPU, got shape ",
            shape_of(rules));
  PFC_CHECK(row >= 0 && row < rules.size(0), "row is ", row, ", rules has ", rules.size(0));
  const double* rec = static_cast<const double*>(rules.const_data_ptr()) + row * rule_record::kWidth;
  for (int i = 0; i < rule_record::kWidth; ++i)
    PFC_CHECK(std::isfinite(rec[i]), "rules: row ", row, " has a number that is not finite (column ", i, ")");
  return decode_rule(rec);
}

inline GuideCall prepare_guide(const Tensor& x, const OptionalTensor& y, OptionalTensor& m, Tensor& mix,
                               Tensor& scratch, const Tensor& out, const OptionalTensor& out2, const Tensor& guidance,
                               const Tensor& rules, int64_t row) {
  GuideCall call;
  GuideArgs& args = call.args;
  CombineArgs& shared = call.held.args;
  args.rule = rule_of(rules, row);
  PFC_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  args.state_dtype = dtype_of(x, "x");
  PFC_CHECK(args.state_dtype == DType::kFloat32 || args.state_dtype == DType::kFloat64,
            "x, the state, must be float32 or float64, got ", torch::headeronly::toString(x.scalar_type()));
  shared.batch = args.batch = x.size(0);
  shared.sample = args.sample = sample_size(x);
  std::vector<Tensor> outs{out};
  if (out2) outs.push_back(*out2);
  add_branches(call.held, x, outs);
  if (args.batch * args.sample == 0) return call;  // nothing to weigh
  PFC_CHECK(shared.branches >= 2, "out: guidance needs two branches or more, got ", shared.branches);
  set_guidance(call.held, x, guidance, rules.size(0), row);
  args.branches = shared.branches;
  args.out_dtype = shared.out_dtype;
  for (int j = 0; j < args.branches; ++j) args.branch[j] = shared.branch[j];
  args.scale = shared.scale;
  args.scale_branch_stride = shared.scale_branch_stride;
  args.scale_sample_stride = shared.scale_sample_stride;
  if (args.rule.uses_point()) {
    if (y) check_like_state(*y, x, "y");
    args.point = call.held.hold(y ? *y : x);
  }
  if (m) {
    check_like_state(*m, x, "m");
    check_written(*m, "m");
    PFC_CHECK(args.branches == 2, "m: a momentum is for two branches, got ", args.branches);
    PFC_CHECK(!args.rule.zero, "m: a momentum and the scale of CFG-Zero* cannot be had in one pass");
    PFC_CHECK(args.rule.q != 0.0, "m: row ", row, " has q = 0, and a momentum is divided by it");
    args.momentum = m->mutable_data_ptr();
  }
  const int64_t rows = guide_rows(args.branches, args.point != nullptr);
  Place(x).check(mix, "mix");
  check_written(mix, "mix");
  PFC_CHECK(mix.scalar_type() == x.scalar_type() && mix.dim() == 2 && mix.size(0) == rows && mix.size(1) == args.batch,
            "mix must be [", rows, ", ", args.batch, "] of the state's dtype, got ", shape_of(mix), " of ",
            torch::headeronly::toString(mix.scalar_type()));
  args.mix = mix.mutable_data_ptr();
  const int64_t needed = args.batch * guide_chunks(args.sample) * guide_sums(guide_vectors(args));
  Place(x).check(scratch, "scratch");
  check_written(scratch, "scratch");
  PFC_CHECK(scratch.scalar_type() == ScalarType::Double && scratch.numel() >= needed,
            "scratch must be float64 with at least ", needed, " elements, got ", scratch.numel(), " of ",
            torch::headeronly::toString(scratch.scalar_type()));
  args.partial = static_cast<double*>(scratch.mutable_data_ptr());
  return call;
}

}  // namespace pfc::ops
