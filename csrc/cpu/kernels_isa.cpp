// Compiled once per instruction set; PFC_ISA names it. Everything but the table is in an unnamed namespace.
#include "adaptive_kernel.hpp"
#include "combine_kernel.hpp"
#include "guide_kernel.hpp"
#include "interpolate_kernel.hpp"
#include "lockstep_kernel.hpp"
#include "randn_kernel.hpp"

#define PFC_STRING2(x) #x
#define PFC_STRING(x) PFC_STRING2(x)
#define PFC_JOIN2(a, b) a##b
#define PFC_JOIN(a, b) PFC_JOIN2(a, b)

namespace pfc::cpu {
extern const EngineKernels PFC_JOIN(kEngine_, PFC_ISA);
extern const Kernels PFC_JOIN(kKernels_, PFC_ISA);
const Kernels PFC_JOIN(kKernels_, PFC_ISA){PFC_STRING(PFC_ISA),
                                           &PFC_JOIN(kEngine_, PFC_ISA),
                                           &combine,
                                           &normals,
                                           &guide_partial,
                                           &guide_finish,
                                           &interpolate,
                                           &adaptive,
                                           &adaptive_sums,
                                           &adaptive_control,
                                           &adaptive_apply,
                                           &lockstep};
}  // namespace pfc::cpu
