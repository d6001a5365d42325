// The kernel of combine_ and combine.
#pragma once

#include "../core/arguments.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct CombineKernels {
  void (*combine)(const CombineArgs&, int64_t begin, int64_t end);  // elements

  static const CombineKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
