// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "engine.hpp"

#include "adaptive_network_kernel.hpp"
#include "log_density_kernel.hpp"
#include "trajectory_kernel.hpp"

namespace pfc::cpu {
const EngineKernels EngineKernels::PFC_ISA{&cpu::network,    &cpu::time_prefixes, &cpu::trajectory,
                                           &cpu::divergence, &cpu::log_density,   &cpu::network_solve};
}  // namespace pfc::cpu
