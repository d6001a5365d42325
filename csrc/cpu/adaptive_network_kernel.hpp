// Adaptive solves of a fused network. A thread keeps a tile of samples, each at a time and a stage of its own: the network on
// the tile, then the kernel of adaptive_ on it, with pointers to the tile. So the bits are those of a loop over the operators.
// The place of a sample that has finished is the next one's; when there are none left, the tile shrinks.
#pragma once

#include "engine.hpp"
#include "network_kernel.hpp"

namespace pfc::cpu {
namespace {

template <class S>
class NetworkSolveTile {
 public:
  static PFC_INLINE int64_t bytes(const NetworkSolveArgs& args, int64_t most) {
    const int64_t dim = args.network.dim, width = padded_to_panel(args.network.layer[0].out);
    return sizeof(S) * (most * (2 * dim + 2 * width) + most * args.solve.slots * dim) + sizeof(double) * most * 4;
  }

  PFC_INLINE NetworkSolveTile(const NetworkSolveArgs& args, const NetworkTile<S>& net, int64_t most, char* memory)
      : args_(args), net_(net), dim_(args.network.dim), width_(net.width0()), most_(most), local_(args.solve) {
    t_ = reinterpret_cast<double*>(memory);
    home_ = reinterpret_cast<int64_t*>(t_ + most);
    local_.partial = reinterpret_cast<double*>(home_ + most);
    y_ = reinterpret_cast<S*>(local_.partial + 2 * most);
    f_ = y_ + most * dim_;
    time_ = f_ + most * dim_;
    condition_ = time_ + most * width_;
    k_ = condition_ + most * width_;
    local_.f = f_;
    local_.y = y_;
    local_.t = t_;
    local_.t_dtype = DType::kFloat64;
    local_.k = k_;
    local_.k_by_place = true;
    local_.home = home_;
    local_.out_dtype = local_.state_dtype;
  }

  inline void run(const AdaptiveKernels& kernels, std::atomic<int64_t>& next) {
    while (true) {
      while (active_ < most_ && take(active_, next)) ++active_;
      if (active_ == 0) return;
      net_.time_prefix([this](int64_t i) { return t_[i]; }, active_, time_);
      Prefix<S> conditions;
      if (args_.cond) conditions = {condition_, width_};
      net_.evaluate(y_, active_, {time_, width_}, conditions, f_);
      local_.places = active_;
      kernels.adaptive(local_, 0, active_);
      for (int64_t place = 0; place < active_;) {
        if (args_.solve.counts[home_[place] * count_record::kWidth + count_record::kStatus] == kUnfinished ||  //
            take(place, next)) {
          ++place;
        } else if (place != --active_) {
          move(active_, place);
        }
      }
    }
  }

 private:
  // The next sample, into this place; false if there is none.
  PFC_INLINE bool take(int64_t place, std::atomic<int64_t>& next) {
    if (exhausted_) return false;
    const int64_t sample = next.fetch_add(1, std::memory_order_relaxed);
    if (sample >= args_.solve.batch) {
      exhausted_ = true;
      return false;
    }
    home_[place] = sample;
    t_[place] = args_.solve.times[0];
    copy(y_ + place * dim_, static_cast<const S*>(args_.solve.x) + sample * dim_, dim_);
    const int64_t conditions = args_.network.condition_count;
    if (args_.cond)
      net_.condition_prefix(static_cast<const S*>(args_.cond) + sample * conditions, 1, condition_ + place * width_);
    return true;
  }

  PFC_INLINE void move(int64_t from, int64_t to) {
    home_[to] = home_[from];
    t_[to] = t_[from];
    copy(y_ + to * dim_, y_ + from * dim_, dim_);
    if (args_.cond) copy(condition_ + to * width_, condition_ + from * width_, width_);
    const int64_t kept = args_.solve.slots * dim_;
    copy(k_ + to * kept, k_ + from * kept, kept);
  }

  static PFC_INLINE void copy(S* to, const S* from, int64_t count) {
    __builtin_memcpy(to, from, sizeof(S) * static_cast<std::size_t>(count));
  }

  const NetworkSolveArgs& args_;
  const NetworkTile<S>& net_;
  const int64_t dim_, width_, most_;
  int64_t active_ = 0;
  bool exhausted_ = false;
  AdaptiveArgs local_;
  double* t_;
  int64_t* home_;
  S *y_, *f_, *time_, *condition_, *k_;
};

template <class S>
inline void network_solve_range(const NetworkSolveArgs& args, const AdaptiveKernels& kernels,
                                std::atomic<int64_t>& next, int64_t most) {
  most = tile_samples<S>(args.network, most);
  const int64_t tile_bytes = (NetworkTile<S>::bytes(args.network, most) + 63) / 64 * 64;
  char* memory =
      static_cast<char*>(thread_scratch(static_cast<std::size_t>(tile_bytes + NetworkSolveTile<S>::bytes(args, most))));
  const NetworkTile<S> net(args.network, most, memory);
  NetworkSolveTile<S>(args, net, most, memory + tile_bytes).run(kernels, next);
}

inline void network_solve(const NetworkSolveArgs& args, const AdaptiveKernels& kernels, std::atomic<int64_t>& next,
                          int64_t most) {
  if (args.network.dtype == DType::kFloat64) return network_solve_range<double>(args, kernels, next, most);
  network_solve_range<float>(args, kernels, next, most);
}

}  // namespace
}  // namespace pfc::cpu
