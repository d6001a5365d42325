// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "lockstep.hpp"

#include "lockstep_kernel.hpp"

namespace pfc::cpu {
const LockstepKernels LockstepKernels::PFC_ISA{&cpu::lockstep};
}  // namespace pfc::cpu
