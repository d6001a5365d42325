// The kernels of guide_.
#pragma once

#include "../core/guide.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct GuideKernels {
  void (*partial)(const GuideArgs&, int64_t begin, int64_t end);  // chunks
  void (*finish)(const GuideArgs&, int64_t begin, int64_t end);   // samples

  static const GuideKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
