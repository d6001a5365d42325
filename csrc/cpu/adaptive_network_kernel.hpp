// Adaptive solves of a fused network. A thread keeps a tile of samples, each at a time and a stage of its own: the network on
// the tile, then the kernel of adaptive_ on it, with pointers to the tile. So the bits are those of a loop over the operators.
// The place of a sample that has finished is the next one's; when there are none left, the tile shrinks. What is evaluated
// is a class of its own: adaptive_density_kernel.hpp has another.
#pragma once

#include "engine.hpp"
#include "kernels.hpp"
#include "network_kernel.hpp"

namespace pfc::cpu {
namespace {

// The field of a solve: the network on the places of a tile, each at a point and a time of its own.
template <class S>
class NetworkField {
 public:
  using State = S;

  static PFC_INLINE int64_t bytes(const NetworkSolveArgs& args, int64_t most) {
    return static_cast<int64_t>(sizeof(S)) * 2 * most * padded_to_panel(args.network.layer[0].out);
  }

  PFC_INLINE NetworkField(const NetworkSolveArgs& args, const NetworkTile<S>& net, int64_t most, char* memory)
      : args_(args), net_(net), width_(net.width0()) {
    time_ = reinterpret_cast<S*>(memory);
    condition_ = time_ + most * width_;
  }

  // A sample comes to a place; a place's sample goes to another.
  PFC_INLINE void take(int64_t sample, int64_t place) const {
    const int64_t conditions = args_.network.condition_count;
    if (args_.cond)
      net_.condition_prefix(static_cast<const S*>(args_.cond) + sample * conditions, 1, condition_ + place * width_);
  }
  PFC_INLINE void move(int64_t from, int64_t to) const {
    if (!args_.cond) return;
    __builtin_memcpy(condition_ + to * width_, condition_ + from * width_,
                     sizeof(S) * static_cast<std::size_t>(width_));
  }

  // What times and conditions add to layer 0, at the first n places.
  PFC_INLINE Prefix<S> times(const double* t, int64_t n) const {
    net_.time_prefix([t](int64_t i) { return t[i]; }, n, time_);
    return {time_, width_};
  }
  PFC_INLINE Prefix<S> conditions() const { return args_.cond ? Prefix<S>{condition_, width_} : Prefix<S>{}; }

  // Points y, times t and samples `home` of the first n places.
  PFC_INLINE void evaluate(const S* y, const double* t, const int64_t* /*home*/, int64_t n, S* f) const {
    net_.evaluate(y, n, times(t, n), conditions(), f);
  }

 private:
  const NetworkSolveArgs& args_;
  const NetworkTile<S>& net_;
  const int64_t width_;
  S *time_, *condition_;
};

template <class Field>
class NetworkSolveTile {
 public:
  using S = typename Field::State;

  static PFC_INLINE int64_t bytes(const AdaptiveArgs& solve, int64_t most) {
    return static_cast<int64_t>(sizeof(S)) * most * solve.sample * (2 + solve.slots) +
           static_cast<int64_t>(sizeof(double)) * most * 2 * (1 + guide_chunks(solve.sample));
  }

  PFC_INLINE NetworkSolveTile(const AdaptiveArgs& solve, const Field& field, int64_t most, char* memory)
      : solve_(solve), field_(field), sample_(solve.sample), most_(most), local_(solve) {
    t_ = reinterpret_cast<double*>(memory);
    home_ = reinterpret_cast<int64_t*>(t_ + most);
    local_.partial = reinterpret_cast<double*>(home_ + most);
    y_ = reinterpret_cast<S*>(local_.partial + 2 * most * guide_chunks(sample_));
    f_ = y_ + most * sample_;
    k_ = f_ + most * sample_;
    local_.f = f_;
    local_.y = y_;
    local_.t = t_;
    local_.t_dtype = DType::kFloat64;
    local_.k = k_;
    local_.k_by_place = true;
    local_.home = home_;
    local_.out_dtype = local_.state_dtype;
  }

  inline void run(const Kernels& kernels, std::atomic<int64_t>& next) {
    while (true) {
      while (active_ < most_ && take(active_, next)) ++active_;
      if (active_ == 0) return;
      field_.evaluate(y_, t_, home_, active_, f_);
      local_.places = active_;
      kernels.adaptive(local_, 0, active_);
      for (int64_t place = 0; place < active_;) {
        if (solve_.counts[home_[place] * count_record::kWidth + count_record::kStatus] == kUnfinished ||  //
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
    if (sample >= solve_.batch) {
      exhausted_ = true;
      return false;
    }
    home_[place] = sample;
    t_[place] = solve_.times[0];
    copy(y_ + place * sample_, static_cast<const S*>(solve_.x) + sample * sample_, sample_);
    field_.take(sample, place);
    return true;
  }

  PFC_INLINE void move(int64_t from, int64_t to) {
    home_[to] = home_[from];
    t_[to] = t_[from];
    copy(y_ + to * sample_, y_ + from * sample_, sample_);
    field_.move(from, to);
    const int64_t kept = solve_.slots * sample_;
    copy(k_ + to * kept, k_ + from * kept, kept);
  }

  static PFC_INLINE void copy(S* to, const S* from, int64_t count) {
    __builtin_memcpy(to, from, sizeof(S) * static_cast<std::size_t>(count));
  }

  const AdaptiveArgs& solve_;
  const Field& field_;
  const int64_t sample_, most_;
  int64_t active_ = 0;
  bool exhausted_ = false;
  AdaptiveArgs local_;
  double* t_;
  int64_t* home_;
  S *y_, *f_, *k_;
};

PFC_INLINE int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class S>
inline void network_solve_range(const NetworkSolveArgs& args, const Kernels& kernels, std::atomic<int64_t>& next,
                                int64_t most) {
  most = tile_samples<S>(args.network, most);
  using Field = NetworkField<S>;
  using Tile = NetworkSolveTile<Field>;
  const int64_t net_bytes = whole_lines(NetworkTile<S>::bytes(args.network, most));
  const int64_t field_bytes = whole_lines(Field::bytes(args, most));
  const int64_t bytes = net_bytes + field_bytes + Tile::bytes(args.solve, most);
  char* memory = static_cast<char*>(thread_scratch(static_cast<std::size_t>(bytes)));
  const NetworkTile<S> net(args.network, most, memory);
  const Field field(args, net, most, memory + net_bytes);
  Tile(args.solve, field, most, memory + net_bytes + field_bytes).run(kernels, next);
}

inline void network_solve(const NetworkSolveArgs& args, const Kernels& kernels, std::atomic<int64_t>& next,
                          int64_t most) {
  if (args.network.dtype == DType::kFloat64) return network_solve_range<double>(args, kernels, next, most);
  network_solve_range<float>(args, kernels, next, most);
}

}  // namespace
}  // namespace pfc::cpu
