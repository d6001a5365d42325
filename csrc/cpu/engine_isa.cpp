// Compiled once per instruction set, beside kernels_isa.cpp; PFC_ISA names it. Everything but the table is in an unnamed
// namespace.
#include "adaptive_density_kernel.hpp"
#include "log_density_kernel.hpp"
#include "trajectory_kernel.hpp"

#define PFC_JOIN2(a, b) a##b
#define PFC_JOIN(a, b) PFC_JOIN2(a, b)

namespace pfc::cpu {
extern const EngineKernels PFC_JOIN(kEngine_, PFC_ISA);
const EngineKernels PFC_JOIN(kEngine_, PFC_ISA){&network,     &time_prefixes, &trajectory,   &divergence,
                                                &log_density, &network_solve, &density_solve};
}  // namespace pfc::cpu
