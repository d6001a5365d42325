// Guidance over the branches of a field: classifier-free guidance (Ho & Salimans 2022), u + w (c - u), extended to
// several conditions, u + sum_j w_j (c_j - u). The unconditional branch is the last. Written relative to the first
// conditional branch, c + (w - 1)(c - u) + ..., so that a scale of 1 gives exactly that branch, as a row that never
// evaluated the unconditional one does, and so that equal branches give exactly that branch at any scale.
#pragma once

#include "macros.hpp"

namespace pfc {

// By the weights of core/guide.hpp: scale(0) is c_1's, scale(j) that of c_j - u, then u's and the point's. With weights (0,
// w - 1, 0) these are the operations of `guide`, for finite branches: 0 times infinity is no zero.
template <class V, int kBranches, class Memory>
PFC_HD V mix(int count, const Memory& memory) {
  const int branches = kBranches > 0 ? kBranches : count;
  const V first = memory.branch(0);
  const V unconditional = memory.branch(branches - 1);
  V sum = memory.scale(1) * (memory.has_momentum() ? memory.momentum() : first - unconditional);
  PFC_NO_UNROLL
  for (int j = 1; j < branches - 1; ++j) sum = sum + memory.scale(j + 1) * (memory.branch(j) - unconditional);
  sum = sum + memory.scale(0) * first;
  sum = sum + memory.scale(branches) * unconditional;
  if (memory.mixes_point()) sum = sum + memory.scale(branches + 1) * memory.point();
  return first + sum;
}

// branch(j) loads branch j, scale(j) the guidance scale of conditional branch j. kBranches is their number where it is known
// when the code is compiled, else 0; kMixed that they are mixed by weights, which only the code for any number looks up.
template <class V, int kBranches, bool kMixed, class Memory>
PFC_HD V guide(int count, const Memory& memory) {
  if constexpr (kMixed) return mix<V, kBranches>(count, memory);
  if constexpr (kBranches == 0) {
    if (memory.mixed()) return mix<V, 0>(count, memory);
  }
  const int branches = kBranches > 0 ? kBranches : count;
  const V unconditional = memory.branch(branches - 1);
  if (branches == 1) return unconditional;
  const V first = memory.branch(0);
  V sum = (memory.scale(0) - 1) * (first - unconditional);
  PFC_NO_UNROLL
  for (int j = 1; j < branches - 1; ++j) sum = sum + memory.scale(j) * (memory.branch(j) - unconditional);
  return first + sum;
}

}  // namespace pfc
