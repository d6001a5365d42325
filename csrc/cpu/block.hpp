// The kernels of transformer blocks: core/block.hpp.
#pragma once

#include "../core/block.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct BlockKernels {
  void (*norm)(const NormArgs&, void* scratch, int64_t begin, int64_t end);  // rows; scratch for norm_scratch_bytes
  void (*gated)(const GatedArgs&, int64_t begin, int64_t end);               // elements of out

  static const BlockKernels baseline, avx2, avx512;
};

// A row between two passes, in the type that is computed in.
inline int64_t norm_scratch_bytes(const NormArgs& args) {
  return args.out ? args.width * (args.dtype == DType::kFloat64 ? 8 : 4) : 0;
}

}  // namespace pfc::cpu
