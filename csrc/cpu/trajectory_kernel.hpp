// A whole plan on tiles of samples: for each row the network on the tile, then the row itself through the `combine` kernel,
// with pointers to the tile. So any plan, its noise and its guidance work, and the bits are those of a loop over the
// operators. State, slots and activations of a tile stay in the cache from the first row to the last.
#pragma once

#include "engine.hpp"
#include "network_kernel.hpp"

namespace pfc::cpu {
namespace {

// As Row::point_is_state, on the numbers that the row computes with.
template <class S>
PFC_INLINE bool is_point_state(const double* rec) {
  using namespace record;
  // Without a branch in the loops: this is asked of every row of every tile.
  bool other = false;
  for (int k = 0; k < kMaxSlots; ++k) other |= static_cast<S>(rec[kE + k]) != S(0);
  for (int n = 0; n < kMaxDraws; ++n) other |= static_cast<S>(rec[kR + n]) != S(0);
  return !other && rec[kC] != 0.0 && rec[kCMinus1] == 0.0 && static_cast<S>(rec[kENew]) == S(0);
}

template <class S>
class TrajectoryTile {
 public:
  static PFC_INLINE int64_t elements(const TrajectoryArgs& args, int64_t samples) {
    const int64_t width = padded_to_panel(args.network.layer[0].out);
    const int64_t dim = row_elements(args, samples);
    const int64_t branches = args.most_branches;
    return dim * (2 + args.slots + branches) + (args.cond ? branches * samples * width : 0);
  }

  PFC_INLINE TrajectoryTile(const TrajectoryArgs& args, const CombineKernels& kernels, const S* prefixes,
                            const NetworkTile<S>& net, int64_t samples, S* memory)
      : args_(args), kernels_(kernels), prefixes_(prefixes), net_(net), row_(row_elements(args, samples)) {
    point_ = memory;
    input_ = point_ + row_;
    slots_ = input_ + row_;
    branches_ = slots_ + args.slots * row_;
    conditions_ = branches_ + args.most_branches * row_;
    condition_row_ = samples * net.width0();
  }

  // Samples first to first + n, through every row.
  inline void run(int64_t first, int64_t n) const {
    const int64_t dim = args_.network.dim;
    S* x = static_cast<S*>(args_.x) + first * dim;
    __builtin_memcpy(x, static_cast<const S*>(args_.x0) + first * dim, sizeof(S) * static_cast<std::size_t>(n * dim));
    prepare_conditions(first, n);
    CombineArgs call;
    call.batch = n;
    call.sample = dim;
    call.state_dtype = call.out_dtype = call.inp_dtype = args_.network.dtype;
    call.x = call.x_out = x;
    for (int k = 0; k < args_.slots; ++k) call.slot[k] = slots_ + k * row_;
    if (args_.seeds) call.seeds = args_.seeds + first;
    const S* point = x;
    const S* input = x;
    int64_t evaluation = 0, keeping = 0;
    for (int64_t i = 0; i < args_.rows; ++i) {
      const double* rec = args_.table + i * record::kWidth;
      const int branches = static_cast<int>(args_.branches[i]);
      if (branches > 0) {
        if (args_.points) keep(args_.points, evaluation, point, first, n);
        ++evaluation;
        evaluate(i, branches, input, n, call);
      }
      call.branches = branches;
      call.record = rec;
      call.point = point;
      const int store = static_cast<int>(rec[record::kStore]);
      call.keep = store >= 0 ? slots_ + store * row_ : nullptr;
      if (branches > 1) {
        call.scale =
            static_cast<const S*>(args_.scale) + i * args_.scale_row_stride + first * args_.scale_sample_stride;
        call.scale_branch_stride = args_.scale_branch_stride;
        call.scale_sample_stride = args_.scale_sample_stride;
      } else {
        call.scale = nullptr;
        call.scale_sample_stride = 0;
      }
      const bool last = i + 1 == args_.rows;
      const bool at_state = is_point_state<S>(rec);
      const bool scaled = static_cast<S>(rec[record::kInScale]) != S(1);
      call.point_out = last || at_state ? nullptr : point_;
      call.copies = last || !scaled ? 0 : 1;
      call.inp = call.copies ? input_ : nullptr;
      kernels_.combine(call, 0, n * dim);
      point = at_state ? x : point_;
      input = scaled ? input_ : point;
      if (keeping < args_.kept && args_.keep_rows[keeping] == i) keep(args_.states, keeping++, x, first, n);
    }
  }

 private:
  static PFC_INLINE int64_t row_elements(const TrajectoryArgs& args, int64_t samples) {
    return padded_to_panel(samples * args.network.dim);
  }

  PFC_INLINE void keep(void* base, int64_t index, const S* from, int64_t first, int64_t n) const {
    const int64_t dim = args_.network.dim;
    S* to = static_cast<S*>(base) + (index * args_.batch + first) * dim;
    __builtin_memcpy(to, from, sizeof(S) * static_cast<std::size_t>(n * dim));
  }

  PFC_INLINE void prepare_conditions(int64_t first, int64_t n) const {
    if (!args_.cond) return;
    for (int j = 0; j < args_.most_branches; ++j)
      net_.condition_prefix(
          static_cast<const S*>(args_.cond) + (j * args_.batch + first) * args_.network.condition_count, n,
          conditions_ + j * condition_row_);
  }

  inline void evaluate(int64_t row, int branches, const S* input, int64_t n, CombineArgs& call) const {
    const Prefix<S> time{prefixes_ + row * net_.width0(), 0};
    for (int j = 0; j < branches; ++j) {
      // Without conditions all branches are one.
      S* out = branches_ + (args_.cond ? j : 0) * row_;
      call.branch[j] = out;
      if (j > 0 && !args_.cond) continue;
      Prefix<S> condition;
      if (args_.cond) condition = {conditions_ + j * condition_row_, net_.width0()};
      net_.evaluate(input, n, time, condition, out);
    }
  }

  const TrajectoryArgs& args_;
  const CombineKernels& kernels_;
  const S* prefixes_;
  const NetworkTile<S>& net_;
  int64_t row_, condition_row_;
  S *point_, *input_, *slots_, *branches_, *conditions_;
};

template <class S>
inline void trajectory_range(const TrajectoryArgs& args, const CombineKernels& kernels, const void* prefixes,
                             int64_t begin, int64_t end) {
  const int64_t most = tile_samples<S>(args.network, end - begin);
  const int64_t tile_bytes = NetworkTile<S>::bytes(args.network, most);
  const int64_t bytes = tile_bytes + sizeof(S) * TrajectoryTile<S>::elements(args, most);
  char* memory = static_cast<char*>(thread_scratch(static_cast<std::size_t>(bytes)));
  const NetworkTile<S> net(args.network, most, memory);
  const TrajectoryTile<S> tile(args, kernels, static_cast<const S*>(prefixes), net, most,
                               reinterpret_cast<S*>(memory + tile_bytes));
  for (int64_t i = begin; i < end; i += most) tile.run(i, end - i < most ? end - i : most);
}

inline void trajectory(const TrajectoryArgs& args, const CombineKernels& kernels, const void* prefixes, int64_t begin,
                       int64_t end) {
  if (args.network.dtype == DType::kFloat64) return trajectory_range<double>(args, kernels, prefixes, begin, end);
  trajectory_range<float>(args, kernels, prefixes, begin, end);
}

template <class S>
inline void time_prefixes_range(const TrajectoryArgs& args, S* prefixes, int64_t begin, int64_t end) {
  void* memory = thread_scratch(static_cast<std::size_t>(NetworkTile<S>::bytes(args.network, 1)));
  const NetworkTile<S> net(args.network, 1, memory);
  net.time_prefix([&](int64_t i) { return args.times[begin + i]; }, end - begin, prefixes + begin * net.width0());
}

inline void time_prefixes(const TrajectoryArgs& args, void* prefixes, int64_t begin, int64_t end) {
  if (args.network.dtype == DType::kFloat64)
    return time_prefixes_range(args, static_cast<double*>(prefixes), begin, end);
  time_prefixes_range(args, static_cast<float*>(prefixes), begin, end);
}

}  // namespace
}  // namespace pfc::cpu
