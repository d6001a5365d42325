// Adaptive solves of a fused network. A thread keeps a tile of samples, each at a time and a stage of its own: the network on
// the tile, then the kernel of adaptive_ on it, with pointers to the tile. So the bits are those of a loop over the operators.
// The place of a sample that has finished is the next one's; when there are none left, the tile shrinks. What is evaluated
// is a class of its own: adaptive_density_kernel.hpp has another.
#pragma once

#include "../core/guide.hpp"
#include "engine.hpp"
#include "lockstep.hpp"
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

  inline void run(const AdaptiveKernels& kernels, std::atomic<int64_t>& next) {
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

// The same for samples in lockstep (lockstep.hpp). Those that wait for the same stage are a group; the tile is its groups, one
// after the other. A sample that has finished leaves its group, the next one begins in the group that waits for the first
// evaluation, and groups that come to wait for the same are one.
template <class S>
class NetworkLockstep {
  // A group for every phase.
  static PFC_INLINE int64_t most_groups(const NetworkSolveArgs& args) { return Method{args.solve.table}.stages() + 2; }
  static PFC_INLINE int64_t group_bytes(const NetworkSolveArgs& args, int64_t most) {
    const int64_t dim = args.network.dim;
    const int64_t own = sizeof(S) * most * (dim + (args.cond ? padded_to_panel(args.network.layer[0].out) : 0));
    return LockstepColumns::bytes(most, dim, args.solve.slots, sizeof(S)) + (8 * most + own + 63) / 64 * 64;
  }

 public:
  static PFC_INLINE int64_t bytes(const NetworkSolveArgs& args, int64_t most) {
    const int64_t dim = args.network.dim, width = padded_to_panel(args.network.layer[0].out);
    return (sizeof(S) * most * (2 * dim + 2 * width) + 8 * most + 63) / 64 * 64 +
           most_groups(args) * group_bytes(args, most);
  }

  PFC_INLINE NetworkLockstep(const NetworkSolveArgs& args, const NetworkTile<S>& net, int64_t most, char* memory)
      : args_(args), net_(net), dim_(args.network.dim), width_(net.width0()), most_(most) {
    char* groups = memory + bytes(args, most) - most_groups(args) * group_bytes(args, most);
    t_ = reinterpret_cast<double*>(memory);
    y_ = reinterpret_cast<S*>(t_ + most);
    f_ = y_ + most * dim_;
    time_ = f_ + most * dim_;
    condition_ = time_ + most * width_;
    for (int64_t g = 0; g < most_groups(args); ++g) {
      Group& group = group_[g];
      char* at = groups + g * group_bytes(args, most);
      group.columns = LockstepColumns(at, most, dim_, sizeof(S));
      group.t = reinterpret_cast<double*>(at + LockstepColumns::bytes(most, dim_, args.solve.slots, sizeof(S)));
      group.y = reinterpret_cast<S*>(group.t + most);
      group.condition = group.y + most * dim_;
    }
    const AdaptiveArgs& solve = args.solve;
    call_.sample = dim_;
    call_.norm = solve.norm;
    call_.max_nfe = solve.max_nfe;
    call_.batch = solve.batch;
    call_.row_count = solve.row_count;
    call_.state_dtype = call_.out_dtype = solve.state_dtype;
    call_.sign = solve.sign;
    call_.times = solve.times;
    call_.table = solve.table;
    call_.rows = solve.rows;
    // Every sample has the first step's size, or none has.
    call_.first_given = solve.clock[clock_record::kFirst] > 0.0;
  }

  inline void run(const LockstepKernels& kernels, std::atomic<int64_t>& next) {
    int64_t active = 0;
    while (true) {
      active += fill(most_ - active, next);
      if (active == 0) return;
      int64_t at = 0;
      for (int64_t g = 0; g < most_groups(args_); ++g) {
        const Group& group = group_[g];
        copy(y_ + at * dim_, group.y, group.count * dim_);
        if (args_.cond) copy(condition_ + at * width_, group.condition, group.count * width_);
        __builtin_memcpy(t_ + at, group.t, sizeof(double) * static_cast<std::size_t>(group.count));
        at += group.count;
      }
      net_.time_prefix([this](int64_t i) { return t_[i]; }, active, time_);
      Prefix<S> conditions;
      if (args_.cond) conditions = {condition_, width_};
      net_.evaluate(y_, active, {time_, width_}, conditions, f_);
      at = 0;
      for (int64_t g = 0; g < most_groups(args_); ++g) {
        Group& group = group_[g];
        if (group.count == 0) continue;
        const int64_t count = group.count;
        call_.columns = group.columns;
        call_.count = count;
        call_.phase = group.phase;
        call_.f = f_ + at * dim_;
        call_.y = group.y;
        call_.t = group.t;
        at += count;
        group.phase = call_.next_phase();
        if (kernels.lockstep(call_, 0, count) > 0) active -= sweep(group);
      }
      join();
    }
  }

 private:
  struct Group {
    LockstepColumns columns;
    int64_t count = 0, phase = 0;
    double* t = nullptr;
    S *y = nullptr, *condition = nullptr;
  };

  static PFC_INLINE void copy(S* to, const S* from, int64_t count) {
    __builtin_memcpy(to, from, sizeof(S) * static_cast<std::size_t>(count));
  }

  // Up to `places` samples that are still to be solved, into a group of their own; how many.
  inline int64_t fill(int64_t places, std::atomic<int64_t>& next) {
    if (places == 0 || exhausted_) return 0;
    Group* group = group_;
    while (group->count > 0) ++group;
    group->phase = 0;
    while (group->count < places) {
      const int64_t sample = next.fetch_add(1, std::memory_order_relaxed);
      if (sample >= args_.solve.batch) {
        exhausted_ = true;
        break;
      }
      if (args_.solve.counts[sample * count_record::kWidth + count_record::kStatus] == kUnfinished)
        take(*group, group->count++, sample);
    }
    pad(*group);
    return group->count;
  }

  void take(Group& group, int64_t lane, int64_t sample) {
    namespace N = lockstep_number;
    namespace W = lockstep_whole;
    const AdaptiveArgs& solve = args_.solve;
    const double* clock = solve.clock + sample * clock_record::kWidth;
    const int64_t* counts = solve.counts + sample * count_record::kWidth;
    const LockstepColumns& to = group.columns;
    to.at(N::kT, lane) = clock[clock_record::kT];
    to.at(N::kError, lane) = clock[clock_record::kError];
    to.at(N::kRtol, lane) = clock[clock_record::kRtol];
    to.at(N::kAtol, lane) = clock[clock_record::kAtol];
    to.at(N::kFirst, lane) = clock[clock_record::kFirst];
    to.at(N::kDue, lane) = solve.times[counts[count_record::kRow]];
    to.count(W::kStatus, lane) = kUnfinished;
    to.count(W::kNfe, lane) = counts[count_record::kNfe];
    to.count(W::kAccepted, lane) = counts[count_record::kAccepted];
    to.count(W::kRejected, lane) = counts[count_record::kRejected];
    to.count(W::kRow, lane) = counts[count_record::kRow];
    to.count(W::kFlags, lane) = counts[count_record::kFlags];
    to.count(W::kHome, lane) = sample;
    const S* x = static_cast<const S*>(solve.x) + sample * dim_;
    for (int64_t e = 0; e < dim_; ++e) static_cast<S*>(to.x)[e * to.lanes + lane] = x[e];
    copy(group.y + lane * dim_, x, dim_);
    group.t[lane] = solve.times[0];
    const int64_t conditions = args_.network.condition_count;
    if (args_.cond)
      net_.condition_prefix(static_cast<const S*>(args_.cond) + sample * conditions, 1,
                            group.condition + lane * width_);
  }

  // A finished sample's records and state, to where they came from.
  void give(const Group& group, int64_t lane) {
    namespace W = lockstep_whole;
    const AdaptiveArgs& solve = args_.solve;
    const LockstepColumns& from = group.columns;
    const int64_t sample = from.count(W::kHome, lane);
    int64_t* counts = solve.counts + sample * count_record::kWidth;
    solve.clock[sample * clock_record::kWidth + clock_record::kT] = from.at(lockstep_number::kT, lane);
    counts[count_record::kStatus] = from.count(W::kStatus, lane);
    counts[count_record::kNfe] = from.count(W::kNfe, lane);
    counts[count_record::kAccepted] = from.count(W::kAccepted, lane);
    counts[count_record::kRejected] = from.count(W::kRejected, lane);
    counts[count_record::kRow] = from.count(W::kRow, lane);
    S* x = static_cast<S*>(solve.x) + sample * dim_;
    for (int64_t e = 0; e < dim_; ++e) x[e] = static_cast<const S*>(from.x)[e * from.lanes + lane];
  }

  // Lanes beyond the last sample of a vector are of no sample.
  static PFC_INLINE void pad(Group& group) {
    const int64_t end = LockstepColumns::padded(group.count);
    for (int64_t lane = group.count; lane < end; ++lane) group.columns.count(lockstep_whole::kStatus, lane) = kSuccess;
  }

  inline void move(const Group& from, int64_t lane, Group& to, int64_t place) {
    const LockstepColumns &a = from.columns, &b = to.columns;
    for (int column = 0; column < lockstep_number::kWidth; ++column) b.at(column, place) = a.at(column, lane);
    for (int column = 0; column < lockstep_whole::kWidth; ++column) b.count(column, place) = a.count(column, lane);
    const int64_t states = dim_ * (args_.solve.slots + 2);  // x, y and k lie one after the other
    for (int64_t e = 0; e < states; ++e)
      static_cast<S*>(b.x)[e * b.lanes + place] = static_cast<const S*>(a.x)[e * a.lanes + lane];
    to.t[place] = from.t[lane];
    copy(to.y + place * dim_, from.y + lane * dim_, dim_);
    if (args_.cond) copy(to.condition + place * width_, from.condition + lane * width_, width_);
  }

  // Takes the finished out of a group; how many.
  inline int64_t sweep(Group& group) {
    const int64_t before = group.count;
    for (int64_t lane = 0; lane < group.count;) {
      if (group.columns.count(lockstep_whole::kStatus, lane) == kUnfinished) {
        ++lane;
        continue;
      }
      give(group, lane);
      if (lane != --group.count) move(group, group.count, group, lane);
    }
    pad(group);
    return before - group.count;
  }

  // Groups of the same phase become one.
  inline void join() {
    for (int64_t g = 0; g < most_groups(args_); ++g)
      for (int64_t h = g + 1; h < most_groups(args_) && group_[g].count > 0; ++h) {
        Group &to = group_[g], &from = group_[h];
        if (from.count == 0 || from.phase != to.phase) continue;
        for (int64_t lane = 0; lane < from.count; ++lane) move(from, lane, to, to.count++);
        from.count = 0;
        pad(to);
      }
  }

  const NetworkSolveArgs& args_;
  const NetworkTile<S>& net_;
  const int64_t dim_, width_, most_;
  bool exhausted_ = false;
  LockstepArgs call_;
  double* t_;
  S *y_, *f_, *time_, *condition_;
  Group group_[method_record::kColumns + 1];
};

PFC_INLINE int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class S>
inline void solve_in_lockstep(const NetworkSolveArgs& args, std::atomic<int64_t>& next, int64_t most) {
  const int64_t net_bytes = whole_lines(NetworkTile<S>::bytes(args.network, most));
  const int64_t bytes = net_bytes + NetworkLockstep<S>::bytes(args, most);
  char* memory = static_cast<char*>(thread_scratch(static_cast<std::size_t>(bytes)));
  const NetworkTile<S> net(args.network, most, memory);
  NetworkLockstep<S>(args, net, most, memory + net_bytes).run(cpu::kernels<LockstepKernels>(), next);
}

template <class S>
inline void network_solve_range(const NetworkSolveArgs& args, const AdaptiveKernels& kernels,
                                std::atomic<int64_t>& next, int64_t most) {
  most = tile_samples<S>(args.network, most);
  if (runs_in_lockstep(args.solve.table, args.solve.sample)) return solve_in_lockstep<S>(args, next, most);
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

inline void network_solve(const NetworkSolveArgs& args, const AdaptiveKernels& kernels, std::atomic<int64_t>& next,
                          int64_t most) {
  if (args.network.dtype == DType::kFloat64) return network_solve_range<double>(args, kernels, next, most);
  network_solve_range<float>(args, kernels, next, most);
}

}  // namespace
}  // namespace pfc::cpu
