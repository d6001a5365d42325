// How the CPU's kernels are reached. A group of kernels (combine.hpp, guide.hpp, ...) is a struct of function pointers, each of
// which takes raw pointers and a range of work. Its NAME_isa.cpp is compiled once per instruction set, in a namespace of its
// own, and defines the struct's member of that name; `kernels<Group>()` is the one for this machine. Splitting a range among
// threads never changes a bit: every element is computed from its own inputs and its logical index alone.
#pragma once

#include <cstdint>

namespace pfc::cpu {

// Work is handed out in units of this many elements, so that a boundary between threads falls between Philox blocks
// wherever a sample's size is a multiple of four.
inline constexpr int64_t kUnit = 1024;

enum class Isa : int { kBaseline, kAvx2, kAvx512 };

// The best set for this machine, or the one named by the environment variable PYFLOWCORE_CPU_ISA or by select_isa.
Isa current_isa();
// "baseline", "avx2" or "avx512".
const char* isa_name();
// False if this machine or this build does not have it.
bool select_isa(const char* name);
bool has_isa(const char* name);

template <class Group>
const Group& kernels() {
#if defined(PFC_HAVE_X86_LEVELS)
  const Isa isa = current_isa();
  if (isa == Isa::kAvx512) return Group::avx512;
  if (isa == Isa::kAvx2) return Group::avx2;
#endif
  return Group::baseline;
}

}  // namespace pfc::cpu
