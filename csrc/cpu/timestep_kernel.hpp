// timestep_features on the CPU: frequencies once for a range of times, then loops that vectorise.
#pragma once

#include <cstddef>

#include "../core/timestep.hpp"
#include "time_features.hpp"

namespace pfc::cpu {
namespace {

inline constexpr int kFrequencies = 256;

template <class O>
inline void timesteps_range(const TimestepArgs& args, int64_t begin, int64_t end) {
  alignas(64) double frequency[kFrequencies];
  alignas(64) O cosine[kFrequencies];
  alignas(64) O sine[kFrequencies];
  for (int64_t first = 0; first < args.half; first += kFrequencies) {
    const int here = static_cast<int>(args.half - first < kFrequencies ? args.half - first : kFrequencies);
    for (int k = 0; k < here; ++k) frequency[k] = timestep_frequency(first + k, args.half, args.period, args.last);
    for (int64_t i = begin; i < end; ++i) {
      const double t = args.scale * load_one<double>(args.t, args.t_dtype, i);
      // No frequency is above 1. The second way has the same bits where the first may be taken.
      if (__builtin_fabs(t) <= kLargestAngle) {
        for (int k = 0; k < here; ++k) {
          cosine[k] = static_cast<O>(turned_sine(t * frequency[k], 1));
          sine[k] = static_cast<O>(turned_sine(t * frequency[k], 0));
        }
      } else {
        for (int k = 0; k < here; ++k) {
          cosine[k] = static_cast<O>(sine_of_quarters(t * frequency[k], 1));
          sine[k] = static_cast<O>(sine_of_quarters(t * frequency[k], 0));
        }
      }
      O* const row = static_cast<O*>(args.out) + 2 * i * args.half + first;
      __builtin_memcpy(row + (args.sine_first ? args.half : 0), cosine, sizeof(O) * static_cast<std::size_t>(here));
      __builtin_memcpy(row + (args.sine_first ? 0 : args.half), sine, sizeof(O) * static_cast<std::size_t>(here));
    }
  }
}

// Times begin .. end.
inline void timesteps(const TimestepArgs& args, int64_t begin, int64_t end) {
  args.dtype == DType::kFloat64 ? timesteps_range<double>(args, begin, end) : timesteps_range<float>(args, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
