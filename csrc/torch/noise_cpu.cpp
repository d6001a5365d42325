// randn and interpolate on the CPU.
#include "../cpu/noise.hpp"
#include "noise.hpp"

namespace pfc::ops {

namespace {

// Units of cpu::kUnit elements that are worth a thread of their own.
constexpr int64_t kGrainUnits = 8;

template <class Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  const int64_t numel = args.batch * args.sample;
  if (numel == 0) return;
  const int64_t units = (numel + cpu::kUnit - 1) / cpu::kUnit;
  if (units <= kGrainUnits) return kernel(args, 0, numel);
  torch::stable::parallel_for(0, units, kGrainUnits, [&](int64_t begin, int64_t end) {
    const int64_t stop = end * cpu::kUnit;
    kernel(args, begin * cpu::kUnit, stop < numel ? stop : numel);
  });
}

Tensor randn(Tensor seeds, std::vector<int64_t> shape, int64_t stream, int64_t draw, ScalarType dtype) {
  NormalCall call = prepare_randn(seeds, shape, stream, draw, dtype);
  run(cpu::kernels<cpu::NoiseKernels>().normals, call.args);
  return call.out;
}

std::tuple<Tensor, Tensor> interpolate(Tensor data, Tensor t, OptionalTensor x0, OptionalTensor seeds, int64_t path,
                                       double path_a, double path_b, int64_t prediction, int64_t stream, int64_t draw) {
  InterpolateCall call = prepare_interpolate(data, t, x0, seeds, path, path_a, path_b, prediction, stream, draw);
  run(cpu::kernels<cpu::NoiseKernels>().interpolate, call.args);
  return {call.point, call.target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("randn", TORCH_BOX(&randn));
  m.impl("interpolate", TORCH_BOX(&interpolate));
}

}  // namespace pfc::ops

// For Python's info() and the tests, by ctypes.
extern "C" {
__attribute__((visibility("default"))) const char* pyflowcore_cpu_isa() { return pfc::cpu::isa_name(); }
__attribute__((visibility("default"))) int pyflowcore_cpu_has_isa(const char* name) { return pfc::cpu::has_isa(name); }
__attribute__((visibility("default"))) int pyflowcore_cpu_select_isa(const char* name) {
  return pfc::cpu::select_isa(name);
}
}
