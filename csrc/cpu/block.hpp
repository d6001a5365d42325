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

// Rows that go through the passes together, if they are not so long that they would leave the caches between two.
inline constexpr int kNormRows = 2;
inline int64_t norm_rows_together(int64_t width) { return width <= 8192 ? kNormRows : 1; }
// A row in the scratch: whole vectors of every instruction set.
inline int64_t norm_padded(int64_t width) { return (width + 31) / 32 * 32; }

// Tensors often begin at the same place of a page as each other, and their rows too: what is in the scratch is kept half a page from
// there. A load that has its last 12 bits of address in common with a store just before it waits for that one.
inline constexpr int64_t kScratchShift = 2112;  // bytes, whole cache lines

// Rows between two passes, and the six that the rows of a sample share, in the type that is computed in.
inline int64_t norm_scratch_bytes(const NormArgs& args) {
  return (norm_rows_together(args.width) + 6) * norm_padded(args.width) * (args.dtype == DType::kFloat64 ? 8 : 4) +
         kScratchShift;
}

}  // namespace pfc::cpu
