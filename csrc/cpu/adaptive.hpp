// The kernels of adaptive_: samples as a whole, or in three rounds.
#pragma once

#include "../core/adaptive.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct AdaptiveKernels {
  void (*adaptive)(const AdaptiveArgs&, int64_t begin, int64_t end);  // samples
  void (*sums)(const AdaptiveArgs&, int64_t begin, int64_t end);      // chunks
  void (*control)(const AdaptiveArgs&, int64_t begin, int64_t end);   // samples
  void (*apply)(const AdaptiveArgs&, int64_t begin, int64_t end);     // chunks

  static const AdaptiveKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
