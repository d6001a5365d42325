// The faces of the kernels on tokens and feature maps: kernels<TokenKernels>() has the set for this machine.
#pragma once

#include "../core/group_norm.hpp"
#include "../core/patches.hpp"
#include "../core/qk_norm_rope.hpp"
#include "../core/timestep.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct TokenKernels {
  void (*qk_norm_rope)(const QkArgs&, int64_t begin, int64_t end);               // tokens of the batch
  void (*group_norm)(const GroupNormArgs&, int64_t begin, int64_t end);          // groups of the batch, whole
  void (*group_norm_partial)(const GroupNormArgs&, int64_t begin, int64_t end);  // or in three rounds: chunks,
  void (*group_norm_finish)(const GroupNormArgs&, int64_t begin, int64_t end);   // groups,
  void (*group_norm_apply)(const GroupNormArgs&, int64_t begin, int64_t end);    // chunks
  void (*timesteps)(const TimestepArgs&, int64_t begin, int64_t end);            // times
  void (*patches)(const PatchArgs&, int64_t begin, int64_t end);                 // rows of patches of the batch

  static const TokenKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
