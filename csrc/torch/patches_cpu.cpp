// patchify_ and unpatchify_ on the CPU.
#include "patches.hpp"

#include "../cpu/token.hpp"
#include "token.hpp"

namespace pfc::ops {

namespace {

// Streaming stores need whole cache lines, written at once: eight lines of the image that are a token, or vectors of an image's line.
bool worth_streaming(const PatchArgs& args, int64_t row) {
  const int64_t bytes = bytes_of(args.to_dtype), unit = args.wide * bytes, lines = args.channels * args.high;
  if (args.from_dtype != args.to_dtype || !args.channels_first || (unit != 4 && unit != 8)) return false;
  if (2 * args.batch * args.rows * row * bytes < kStreamingBytes || !on_line(args.to)) return false;
  return args.columns * unit % 64 == 0 && lines % 8 == 0 && (lines == 8 || !args.to_tokens);
}

void run(const PatchCall& call) {
  if (call.empty()) return;
  PatchArgs args = call.args;
  args.streaming = worth_streaming(args, args.columns * args.token());
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
