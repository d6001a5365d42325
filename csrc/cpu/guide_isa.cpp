// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "guide.hpp"

#include "guide_kernel.hpp"

namespace pfc::cpu {
const GuideKernels GuideKernels::PFC_ISA{&cpu::guide_partial, &cpu::guide_finish};
}  // namespace pfc::cpu
