// timestep_features on CUDA: a thread takes one frequency, and the sine and cosine of one time or of a few. float64 arithmetic is
// what takes time; neighbouring threads write neighbouring features. Compiles for the host as well, for the tests.
#pragma once

#include "../core/timestep.hpp"
#include "number.hpp"

namespace pfc::cuda {

struct TimestepParams {
  TimestepArgs args;
  Divider half;
  int64_t groups = 0;  // of times
  int times = 1;       // of a group, the last perhaps less
};

// A frequency costs some two times what its sine and cosine do. It is shared only where there are more threads than run at once;
// with fewer, a thread's own time decides.
inline constexpr int kMostTimes = 4;
inline constexpr int64_t kManyThreads = int64_t{1} << 18;

// O is what is written: float or double.
template <class O>
PFC_HD void timestep_features(const TimestepParams& p, int64_t tile, int thread) {
  const TimestepArgs& args = p.args;
  const int64_t unit = tile * kThreads + thread;
  const int64_t group = p.half.quotient(unit), k = unit - group * args.half;
  if (group >= p.groups) return;
  const double frequency = timestep_frequency(k, args.half, args.period, args.last);
  const int64_t begin = group * p.times, left = args.count - begin;
  const int64_t end = left < p.times ? args.count : begin + p.times;
  PFC_NO_UNROLL
  for (int64_t i = begin; i < end; ++i) {
    const double angle = args.scale * load_number<double>(args.t, args.t_dtype, i) * frequency;
    O* const row = static_cast<O*>(args.out) + 2 * i * args.half + k;
    row[args.sine_first ? args.half : 0] = static_cast<O>(sine_of_quarters(angle, 1));
    row[args.sine_first ? 0 : args.half] = static_cast<O>(sine_of_quarters(angle, 0));
  }
}

// -------------------------------------------------------------------------------------------------------------------- host
// launch(the type that is written, params, tiles).
template <class Launch>
auto dispatch_timesteps(const TimestepArgs& args, const Launch& launch) {
  TimestepParams params{args, make_divider(args.half), 0, 1};
  if (args.count * args.half > kManyThreads) params.times = kMostTimes;
  params.groups = (args.count + params.times - 1) / params.times;
  const int64_t tiles = (params.groups * args.half + kThreads - 1) / kThreads;
  return args.dtype == DType::kFloat64 ? launch(0.0, params, tiles) : launch(0.0f, params, tiles);
}

}  // namespace pfc::cuda
