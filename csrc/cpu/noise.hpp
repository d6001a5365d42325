// The kernels of randn and interpolate.
#pragma once

#include "../core/arguments.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct NoiseKernels {
  void (*normals)(const NormalArgs&, int64_t begin, int64_t end);           // elements
  void (*interpolate)(const InterpolateArgs&, int64_t begin, int64_t end);  // elements

  static const NoiseKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
