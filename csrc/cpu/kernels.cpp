// Which kernels run: the best instruction set that both this build and this machine have, unless one is named.
#include "kernels.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace pfc::cpu {

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

bool has(Isa isa) {
#if defined(PFC_HAVE_X86_LEVELS)
  __builtin_cpu_init();
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return isa == Isa::kBaseline;
}

std::optional<Isa> find(const char* name) {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (!std::strcmp(name, kNames[static_cast<int>(isa)]) && has(isa)) return isa;
  return std::nullopt;
}

Isa best() {
  if (const char* wanted = std::getenv("PYFLOWCORE_CPU_ISA"))
    if (const std::optional<Isa> named = find(wanted)) return *named;
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2})
    if (has(isa)) return isa;
  return Isa::kBaseline;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> chosen{best()};
  return chosen;
}

}  // namespace

Isa current_isa() { return current().load(std::memory_order_relaxed); }

const char* isa_name() { return kNames[static_cast<int>(current_isa())]; }

bool has_isa(const char* name) { return find(name).has_value(); }

bool select_isa(const char* name) {
  const std::optional<Isa> found = find(name);
  if (found) current().store(*found, std::memory_order_relaxed);
  return found.has_value();
}

}  // namespace pfc::cpu
