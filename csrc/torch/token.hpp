// What the CPU's operators on tokens and feature maps share.
#pragma once

#include "tensors.hpp"

namespace pfc::ops {

// From this footprint on, buffers that are only written bypass the cache, as in combine_: docs/notes/combine.md.
inline constexpr int64_t kStreamingBytes = int64_t{6} << 20;
// Elements of a pass over memory that are worth a thread of their own.
inline constexpr int64_t kGrainElements = int64_t{32} << 10;

inline int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

inline bool on_line(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

// Parts of `count` units of `elements` each.
template <class Range>
void in_units(int64_t count, int64_t elements, const Range& range) {
  const int64_t grain = elements > 0 ? 1 + (kGrainElements - 1) / elements : 1;
  if (count <= grain) return range(0, count);
  torch::stable::parallel_for(0, count, grain, range);
}

}  // namespace pfc::ops
