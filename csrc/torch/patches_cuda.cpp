// patchify_ and unpatchify_ on CUDA.
#include "patches.hpp"

#include "../cuda/token.hpp"
#include "cuda_launch.hpp"

namespace pfc::ops {

namespace {

void run(const PatchCall& call, const OnDevice& device, const char* name) {
  if (!call.empty()) check_launch(cuda::patches(call.args, device.stream()), name);
}

void patchify_(Tensor x, Tensor out, int64_t high, int64_t wide, bool channels_first) {
  const OnDevice device(x, "x");
  run(prepare_patches(x, out, high, wide, channels_first, true), device, "patchify_");
}

void unpatchify_(Tensor tokens, Tensor out, int64_t high, int64_t wide, bool channels_first) {
  const OnDevice device(tokens, "tokens");
  run(prepare_patches(tokens, out, high, wide, channels_first, false), device, "unpatchify_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) {
  m.impl("patchify_", TORCH_BOX(&patchify_));
  m.impl("unpatchify_", TORCH_BOX(&unpatchify_));
}

}  // namespace pfc::ops
