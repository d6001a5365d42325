// trajectory: from tensors to TrajectoryArgs. What CPU and CUDA share; they differ in the kernel that they call.
#pragma once

#include <algorithm>
#include <bit>

#include "combine.hpp"
#include "network.hpp"

namespace pfc::ops {

struct TrajectoryCall {
  TrajectoryArgs args;
  Tensor x, states, points;
  std::vector<Tensor> held;

  const void* hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back().const_data_ptr();
  }
};

inline void check_host_vector(const Tensor& tensor, ScalarType dtype, int64_t size, const char* name) {
  PFC_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.dim() == 1 && tensor.is_contiguous() &&
                (size < 0 || tensor.size(0) == size),
            name, " must be contiguous ", torch::headeronly::toString(dtype), " of shape [",
            size < 0 ? std::string("rows kept") : std::to_string(size), "] on the CPU, got ",
            torch::headeronly::toString(tensor.scalar_type()), " ", shape_of(tensor));
}

// Whether all numbers of a row are certainly finite in float32: one pass without a branch, since a call looks at every row.
inline bool surely_finite(const double* rec) {
  int large = 0;
  for (int i = 0; i < record::kWidth; ++i) large |= !(std::fabs(rec[i]) <= 3.0e38);
  return large == 0;
}

// Whether all of them are 0 or -0.
inline bool all_zero(const double* values, int count) {
  uint64_t bits = 0;
  for (int i = 0; i < count; ++i) bits |= std::bit_cast<uint64_t>(values[i]) << 1;
  return bits == 0;
}

// One bit for each slot that a row reads. Most rows of most plans read none.
inline uint32_t slots_read(const double* rec) {
  uint32_t reads = 0;
  if (all_zero(rec + record::kB, kMaxSlots) && all_zero(rec + record::kE, kMaxSlots)) return reads;
  for (int k = 0; k < kMaxSlots; ++k)
    reads |= static_cast<uint32_t>((rec[record::kB + k] != 0.0) | (rec[record::kE + k] != 0.0)) << k;
  return reads;
}

inline bool has_draws(const double* rec) {
  return !all_zero(rec + record::kS, kMaxDraws) || !all_zero(rec + record::kR, kMaxDraws);
}

// Each row: its numbers, its slots, its draws and its branches. What a kernel then reads without looking.
inline void check_rows(TrajectoryArgs& args, const Tensor& table, bool seeds_given, bool scale_given) {
  const bool single = args.network.dtype == DType::kFloat32;
  uint32_t filled = 0;
  for (int64_t i = 0; i < args.rows; ++i) {
    const double* rec = args.table + i * record::kWidth;
    if (!surely_finite(rec) || rec[record::kStore] < -1.0 || rec[record::kStore] >= kMaxSlots || has_draws(rec))
      row_record(table, i, single);
    const int64_t branches = args.branches[i];
    const bool evaluates = rec[record::kEvaluates] != 0.0;
    PFC_CHECK(branches >= 0 && branches <= kMaxBranches, "branches: row ", i, " has ", branches, ", allowed are 0 to ",
              kMaxBranches);
    PFC_CHECK(evaluates || branches == 0, "branches: row ", i, " evaluates nothing and has ", branches);
    PFC_CHECK(branches > 0 || !evaluates || rec[record::kQ] == 0.0, "branches: row ", i,
              " needs the network's output (q is ", rec[record::kQ], ") and has none");
    PFC_CHECK(branches < 2 || scale_given, "guidance: row ", i, " has ", branches,
              " branches and needs a scale, got None");
    if (branches > args.most_branches) args.most_branches = static_cast<int>(branches);
    const uint32_t reads = slots_read(rec);
    if (const uint32_t unwritten = reads & ~filled; unwritten != 0)
      PFC_CHECK(false, "table: row ", i, " reads slot ", std::countr_zero(unwritten),
                ", which no row before it writes");
    args.slots = std::max(args.slots, static_cast<int>(std::bit_width(reads)));
    const int store = static_cast<int>(rec[record::kStore]);
    PFC_CHECK(store < 0 || (reads >> store & 1u) == 0, "table: row ", i, " reads and writes slot ", store, " in place");
    PFC_CHECK(store < 0 || evaluates, "table: row ", i, " evaluates nothing and stores into slot ", store);
    if (store >= 0) filled |= 1u << store;
    if (store >= args.slots) args.slots = store + 1;
    PFC_CHECK(seeds_given || !has_draws(rec), "seeds: row ", i, " draws noise and needs them, got None");
  }
}

inline void set_scales(TrajectoryCall& call, const Tensor& x0, const Tensor& guidance) {
  TrajectoryArgs& args = call.args;
  Place(x0).check(guidance, "guidance");
  PFC_CHECK(guidance.scalar_type() == x0.scalar_type(), "guidance has dtype ",
            torch::headeronly::toString(guidance.scalar_type()), ", x0 has ",
            torch::headeronly::toString(x0.scalar_type()));
  const bool per_branch = guidance.dim() == 3;
  const int64_t last = guidance.dim() > 0 ? guidance.size(guidance.dim() - 1) : 0;
  PFC_CHECK((guidance.dim() == 2 || per_branch) && guidance.size(0) == args.rows && (last == 1 || last == args.batch),
            "guidance must have shape [", args.rows, ", 1 or ", args.batch, "] or [", args.rows,
            ", branches - 1, 1 or ", args.batch, "], got ", shape_of(guidance));
  PFC_CHECK(!per_branch || guidance.size(1) == args.most_branches - 1 || args.most_branches < 2, "guidance has ",
            per_branch ? guidance.size(1) : 1, " scales in a row, ", args.most_branches, " branches need ",
            args.most_branches - 1);
  args.scale = call.hold(guidance);
  args.scale_branch_stride = per_branch ? last : 0;
  args.scale_sample_stride = last == 1 ? 0 : 1;
  args.scale_row_stride = per_branch ? guidance.size(1) * last : last;
}

// [count, the state's shape]
inline Tensor stacked_like(const Tensor& x, int64_t count) {
  std::vector<int64_t> sizes{count};
  for (int64_t i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return torch::stable::new_empty(x, sizes);
}

inline TrajectoryCall prepare_trajectory(const Tensor& x0, const Tensor& times, const OptionalTensor& cond,
                                         const Tensor& params, const Tensor& layers, const Tensor& features,
                                         const Tensor& table, const Tensor& branches, const OptionalTensor& guidance,
                                         const OptionalTensor& seeds, const OptionalTensor& keep_rows,
                                         bool keep_points) {
  TrajectoryCall call;
  TrajectoryArgs& args = call.args;
  args.network = prepare_fused(x0, "x0", cond, params, layers, features);
  args.batch = x0.size(0);
  host_table(table, record::kWidth, "table");
  args.rows = table.size(0);
  check_host_vector(times, ScalarType::Double, args.rows, "times");
  check_host_vector(branches, ScalarType::Long, args.rows, "branches");
  args.times = static_cast<const double*>(times.const_data_ptr());
  args.branches = static_cast<const int64_t*>(branches.const_data_ptr());
  args.table = static_cast<const double*>(table.const_data_ptr());
  if (seeds) {
    Place(x0).check(*seeds, "seeds");
    check_batch_seeds(*seeds, args.batch);
  }
  check_rows(args, table, seeds.has_value(), guidance.has_value());
  if (seeds) args.seeds = static_cast<const int64_t*>(call.hold(*seeds));
  if (guidance) set_scales(call, x0, *guidance);
  if (cond) {
    const int64_t stacked = args.batch > 0 ? cond->size(0) / args.batch : 0;
    PFC_CHECK(cond->size(0) == stacked * args.batch, "cond has ", cond->size(0), " rows, no multiple of the batch ",
              args.batch);
    for (int64_t i = 0; i < args.rows && args.batch > 0; ++i)
      PFC_CHECK(args.branches[i] < 2 ? args.branches[i] <= stacked : args.branches[i] == stacked, "branches: row ", i,
                " has ", args.branches[i], ", cond has ", stacked, " stacked; a row takes none, the first or all");
    args.cond = call.hold(*cond);
  }
  const Tensor start = as_contiguous(x0);
  call.held.push_back(start);
  args.x0 = start.const_data_ptr();
  call.x = torch::stable::empty_like(start);
  args.x = call.x.mutable_data_ptr();
  if (keep_rows) {
    check_host_vector(*keep_rows, ScalarType::Long, -1, "keep_rows");
    args.keep_rows = static_cast<const int64_t*>(keep_rows->const_data_ptr());
    args.kept = keep_rows->size(0);
    for (int64_t k = 0; k < args.kept; ++k)
      PFC_CHECK(args.keep_rows[k] >= (k ? args.keep_rows[k - 1] + 1 : 0) && args.keep_rows[k] < args.rows,
                "keep_rows: entry ", k, " is ", args.keep_rows[k], "; they must ascend from 0 to ", args.rows - 1);
  }
  call.states = stacked_like(start, args.kept);
  args.states = call.states.mutable_data_ptr();
  int64_t evaluated = 0;
  for (int64_t i = 0; keep_points && i < args.rows; ++i) evaluated += args.branches[i] > 0;
  call.points = stacked_like(start, evaluated);
  if (keep_points) args.points = call.points.mutable_data_ptr();
  return call;
}

}  // namespace pfc::ops
