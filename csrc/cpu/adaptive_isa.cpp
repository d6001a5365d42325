// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "adaptive.hpp"

#include "adaptive_kernel.hpp"

namespace pfc::cpu {
const AdaptiveKernels AdaptiveKernels::PFC_ISA{&cpu::adaptive, &cpu::adaptive_sums, &cpu::adaptive_control,
                                               &cpu::adaptive_apply};
}  // namespace pfc::cpu
