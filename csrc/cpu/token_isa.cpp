// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "token.hpp"

#include "qk_norm_rope_kernel.hpp"

namespace pfc::cpu {
const TokenKernels TokenKernels::PFC_ISA{&cpu::qk_norm_rope};
}  // namespace pfc::cpu
