// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "combine.hpp"

#include "combine_kernel.hpp"

namespace pfc::cpu {
const CombineKernels CombineKernels::PFC_ISA{&cpu::combine};
}  // namespace pfc::cpu
