// Which kernels run: the best instruction set that both this build and this machine have, unless one is named.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

namespace pfc::cpu {

extern const Kernels kKernels_baseline;
#if defined(PFC_HAVE_X86_LEVELS)
extern const Kernels kKernels_avx2;
extern const Kernels kKernels_avx512;
#endif

namespace {

const Kernels* find(const char* name) {
#if defined(PFC_HAVE_X86_LEVELS)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &kKernels_avx512;
  if (!std::strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return &kKernels_avx2;
#endif
  if (!std::strcmp(name, "baseline")) return &kKernels_baseline;
  return nullptr;
}

const Kernels* best() {
  if (const char* wanted = std::getenv("PYFLOWCORE_CPU_ISA"))
    if (const Kernels* named = find(wanted)) return named;
  for (const char* name : {"avx512", "avx2"})
    if (const Kernels* found = find(name)) return found;
  return &kKernels_baseline;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen{best()};
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_acquire); }

bool has_isa(const char* name) { return find(name) != nullptr; }

bool select_isa(const char* name) {
  const Kernels* found = find(name);
  if (found) current().store(found, std::memory_order_release);
  return found != nullptr;
}

}  // namespace pfc::cpu
