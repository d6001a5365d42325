// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "noise.hpp"

#include "interpolate_kernel.hpp"
#include "randn_kernel.hpp"

namespace pfc::cpu {
const NoiseKernels NoiseKernels::PFC_ISA{&cpu::normals, &cpu::interpolate};
}  // namespace pfc::cpu
