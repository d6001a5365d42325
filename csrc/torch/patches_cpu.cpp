// patchify_ and unpatchify_ on the CPU.
#include "patches.hpp"

#include "../cpu/token.hpp"
#include "token.hpp"

namespace pfc::ops {

namespace {

void run(const PatchCall& call) {
  if (call.empty()) return;
  const PatchArgs& args = call.args;
  const auto& kernels = cpu::kernels<cpu::TokenKernels>();
  in_units(args.batch * args.rows, args.columns * args.token(),
           [&](int64_t begin, int64_t end) { kernels.patches(args, begin, end); });
}

void patchify_(Tensor x, Tensor out, int64_t high, int64_t wide, bool channels_first) {
  run(prepare_patches(x, out, high, wide, channels_first, true));
}

void unpatchify_(Tensor tokens, Tensor out, int64_t high, int64_t wide, bool channels_first) {
  run(prepare_patches(tokens, out, high, wide, channels_first, false));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("patchify_", TORCH_BOX(&patchify_));
  m.impl("unpatchify_", TORCH_BOX(&unpatchify_));
}

}  // namespace pfc::ops
