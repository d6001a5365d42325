// The CPU kernels' faces: raw pointers and a range of work. Each kernel file is compiled once per instruction set, in a
// namespace of its own; `kernels()` returns the set chosen for this machine. Splitting a range among threads never
// changes a bit: every element is computed from its own inputs and its logical index alone.
#pragma once

#include <cstdint>

#include "../core/adaptive.hpp"
#include "../core/arguments.hpp"
#include "../core/guide.hpp"

namespace pfc::cpu {

// Work is handed out in units of this many elements, so that a boundary between threads falls between Philox blocks
// wherever a sample's size is a multiple of four.
inline constexpr int64_t kUnit = 1024;

struct EngineKernels;

struct Kernels {
  const char* isa;
  const EngineKernels* engine;  // engine.hpp
  void (*combine)(const CombineArgs&, int64_t begin, int64_t end);
  void (*normals)(const NormalArgs&, int64_t begin, int64_t end);
  void (*guide_partial)(const GuideArgs&, int64_t begin, int64_t end);  // chunks
  void (*guide_finish)(const GuideArgs&, int64_t begin, int64_t end);   // samples
  void (*interpolate)(const InterpolateArgs&, int64_t begin, int64_t end);
  void (*adaptive)(const AdaptiveArgs&, int64_t begin, int64_t end);          // samples, whole
  void (*adaptive_sums)(const AdaptiveArgs&, int64_t begin, int64_t end);     // or in three rounds: chunks,
  void (*adaptive_control)(const AdaptiveArgs&, int64_t begin, int64_t end);  // samples,
  void (*adaptive_apply)(const AdaptiveArgs&, int64_t begin, int64_t end);    // chunks
};

// The best set for this machine, or the one named by the environment variable PYFLOWCORE_CPU_ISA or by select_isa.
const Kernels& kernels();
// The same for a group of kernels that has a file of its own, which defines the members `baseline`, `avx2` and `avx512`.
template <class Group>
const Group& kernels() {
#if defined(PFC_HAVE_X86_LEVELS)
  const char level = kernels().isa[3];  // baseline, avx2, avx512
  if (level == '5') return Group::avx512;
  if (level == '2') return Group::avx2;
#endif
  return Group::baseline;
}
// "baseline", "avx2" or "avx512"; false if this machine or this build does not have it.
bool select_isa(const char* name);
bool has_isa(const char* name);

}  // namespace pfc::cpu
