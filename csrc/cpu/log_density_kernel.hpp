// A whole plan with the log-density's change, on tiles of samples: for each row the network and its divergence, the row itself
// through the `combine` kernel, and the same weights, in float64, for the integral of the divergence.
#pragma once

#include "divergence_kernel.hpp"
#include "trajectory_kernel.hpp"

namespace pfc::cpu {
namespace {

template <class S>
class LogDensityTile {
 public:
  static PFC_INLINE int64_t bytes(const LogDensityArgs& args, int64_t samples) {
    const TrajectoryArgs& path = args.path;
    const int64_t width = padded_to_panel(path.network.layer[0].out);
    return static_cast<int64_t>(sizeof(S)) *
               (row_elements(path, samples) * (3 + path.slots) + (path.cond ? samples * width : 0)) +
           static_cast<int64_t>(sizeof(double)) * trace_elements(args, samples) * (1 + path.slots);
  }

  PFC_INLINE LogDensityTile(const LogDensityArgs& args, const CombineKernels& kernels, const S* prefixes,
                            const NetworkTile<S>& net, const DivergenceTile<S>& divergence, int64_t samples,
                            void* memory)
      : args_(args), kernels_(kernels), prefixes_(prefixes), net_(net), divergence_(divergence) {
    row_ = row_elements(args.path, samples);
    trace_ = trace_elements(args, samples);
    traces_ = static_cast<double*>(memory);
    point_ = reinterpret_cast<S*>(traces_ + (1 + args.path.slots) * trace_);
    input_ = point_ + row_;
    out_ = input_ + row_;
    slots_ = out_ + row_;
    condition_ = slots_ + args.path.slots * row_;
  }

  // Samples first to first + n, through every row.
  inline void run(int64_t first, int64_t n) const {
    const TrajectoryArgs& path = args_.path;
    const int64_t dim = path.network.dim, estimates = args_.probes.estimates();
    S* x = static_cast<S*>(path.x) + first * dim;
    double* change = args_.change + first * estimates;
    __builtin_memcpy(x, static_cast<const S*>(path.x0) + first * dim, sizeof(S) * static_cast<std::size_t>(n * dim));
    for (int64_t i = 0; i < n * estimates; ++i) change[i] = 0.0;
    Prefix<S> condition;
    if (path.cond) {
      net_.condition_prefix(static_cast<const S*>(path.cond) + first * path.network.condition_count, n, condition_);
      condition = {condition_, net_.width0()};
    }
    CombineArgs call;
    call.batch = n;
    call.sample = dim;
    call.state_dtype = call.out_dtype = call.inp_dtype = path.network.dtype;
    call.x = call.x_out = x;
    call.branch[0] = out_;
    for (int k = 0; k < path.slots; ++k) call.slot[k] = slots_ + k * row_;
    const S* point = x;
    const S* input = x;
    double shown = 1.0;
    for (int64_t i = 0; i < path.rows; ++i) {
      const double* rec = path.table + i * record::kWidth;
      const bool evaluates = path.branches[i] > 0;
      if (evaluates)
        divergence_.evaluate(input, n, {prefixes_ + i * net_.width0(), 0}, condition, args_.probes, path.batch, first,
                             out_, traces_);
      add_divergence(rec, evaluates, shown, n * estimates, change);
      const int store = static_cast<int>(rec[record::kStore]);
      call.branches = evaluates ? 1 : 0;
      call.record = rec;
      call.point = point;
      call.keep = store >= 0 ? slots_ + store * row_ : nullptr;
      const bool last = i + 1 == path.rows, at_state = is_point_state<S>(rec);
      const bool scaled = static_cast<S>(rec[record::kInScale]) != S(1);
      call.point_out = last || at_state ? nullptr : point_;
      call.copies = last || !scaled ? 0 : 1;
      call.inp = call.copies ? input_ : nullptr;
      kernels_.combine(call, 0, n * dim);
      point = at_state ? x : point_;
      input = scaled ? input_ : point;
      shown = rec[record::kInScale];
    }
  }

 private:
  static PFC_INLINE int64_t row_elements(const TrajectoryArgs& path, int64_t samples) {
    return padded_to_panel(samples * path.network.dim);
  }
  static PFC_INLINE int64_t trace_elements(const LogDensityArgs& args, int64_t samples) {
    return padded_to_panel(samples * args.probes.estimates());
  }

  // The row's weights on divergences: the prediction p y + q out has p dim + q shown tr J.
  inline void add_divergence(const double* rec, bool evaluates, double shown, int64_t count, double* change) const {
    const double constant = rec[record::kP] * args_.path.network.dim, factor = rec[record::kQ] * shown;
    const int store = static_cast<int>(rec[record::kStore]);
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0.0;
      if (evaluates) {
        const double d = constant + factor * traces_[i];
        if (store >= 0) traces_[(1 + store) * trace_ + i] = d;
        sum = rec[record::kBNew] * d;
      }
      for (int k = 0; k < args_.path.slots; ++k)
        if (rec[record::kB + k] != 0.0) sum += rec[record::kB + k] * traces_[(1 + k) * trace_ + i];
      change[i] += sum;
    }
  }

  const LogDensityArgs& args_;
  const CombineKernels& kernels_;
  const S* prefixes_;
  const NetworkTile<S>& net_;
  const DivergenceTile<S>& divergence_;
  int64_t row_, trace_;
  double* traces_;
  S *point_, *input_, *out_, *slots_, *condition_;
};

template <class S>
inline void log_density_range(const LogDensityArgs& args, const CombineKernels& kernels, const void* prefixes,
                              int64_t begin, int64_t end) {
  const Network& network = args.path.network;
  const TileShape shape = divergence_shape<S>(network, args.probes, end - begin);
  const int64_t divergence_bytes = DivergenceTile<S>::bytes(network, shape);
  const int64_t net_bytes = NetworkTile<S>::bytes(network, shape.samples);
  const int64_t bytes = divergence_bytes + net_bytes + LogDensityTile<S>::bytes(args, shape.samples);
  char* memory = static_cast<char*>(thread_scratch(static_cast<std::size_t>(bytes)));
  const DivergenceTile<S> divergence(network, shape, memory);
  const NetworkTile<S> net(network, shape.samples, memory + divergence_bytes);
  const LogDensityTile<S> tile(args, kernels, static_cast<const S*>(prefixes), net, divergence, shape.samples,
                               memory + divergence_bytes + net_bytes);
  for (int64_t i = begin; i < end; i += shape.samples) tile.run(i, end - i < shape.samples ? end - i : shape.samples);
}

inline void log_density(const LogDensityArgs& args, const CombineKernels& kernels, const void* prefixes, int64_t begin,
                        int64_t end) {
  if (args.path.network.dtype == DType::kFloat64) return log_density_range<double>(args, kernels, prefixes, begin, end);
  log_density_range<float>(args, kernels, prefixes, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
