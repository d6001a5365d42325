// The faces of the kernels on tokens and feature maps: kernels<TokenKernels>() has the set for this machine.
#pragma once

#include "../core/qk_norm_rope.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct TokenKernels {
  void (*qk_norm_rope)(const QkArgs&, int64_t begin, int64_t end);  // tokens of the batch

  static const TokenKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
