// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "block.hpp"

#include "block_kernel.hpp"
#include "gated_kernel.hpp"

namespace pfc::cpu {
const BlockKernels BlockKernels::PFC_ISA{&cpu::block_norm, &cpu::gated};
}  // namespace pfc::cpu
