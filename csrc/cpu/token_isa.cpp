// Compiled once per instruction set; PFC_ISA names it. Everything but the group is in an unnamed namespace.
#include "token.hpp"

#include "group_norm_kernel.hpp"
#include "patches_kernel.hpp"
#include "qk_norm_rope_kernel.hpp"
#include "timestep_kernel.hpp"

namespace pfc::cpu {
const TokenKernels TokenKernels::PFC_ISA{
    &cpu::qk_norm_rope, &cpu::group_norm, &cpu::group_norm_partial, &cpu::group_norm_finish, &cpu::group_norm_apply,
    &cpu::timesteps,    &cpu::patches};
}  // namespace pfc::cpu
