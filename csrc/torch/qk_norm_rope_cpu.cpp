// qk_norm_rope and qk_norm_rope_ on the CPU.
#include "qk_norm_rope.hpp"

#include "../cpu/token.hpp"
#include "token.hpp"

namespace pfc::ops {

namespace {

// Streaming stores need every vector of every head on a multiple of its size: heads, and halves that turn, in whole lines.
bool worth_streaming(const QkArgs& args) {
  const int64_t bytes = bytes_of(args.dtype);
  const int64_t elements = args.batch * args.tokens * (args.heads + 2 * args.kv_heads) * args.head;
  const int64_t run = args.cos && !args.adjacent ? args.head / 2 : args.head;
  if (2 * elements * bytes < kStreamingBytes || run * bytes % 64 != 0) return false;
  return on_line(args.out[0]) && on_line(args.out[1]) && on_line(args.out[2]);
}

void run(QkArgs& args) {
  const int64_t width = (args.heads + 2 * args.kv_heads) * args.head;
  if (args.batch * args.tokens * width == 0) return;
  args.streaming = worth_streaming(args);
  const auto& kernels = cpu::kernels<cpu::TokenKernels>();
  in_units(args.batch * args.tokens, width,
           [&](int64_t begin, int64_t end) { kernels.qk_norm_rope(args, begin, end); });
}

void qk_norm_rope_(Tensor qkv, Tensor q, Tensor k, Tensor v, int64_t heads, int64_t kv_heads, OptionalTensor bias,
                   OptionalTensor q_weight, OptionalTensor k_weight, OptionalTensor q_shift, OptionalTensor k_shift,
                   int64_t norm, double eps, OptionalTensor cos, OptionalTensor sin, bool adjacent, int64_t q_offset,
                   int64_t kv_offset) {
  QkCall call =
      prepare_qk(qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, norm, eps, cos, sin, adjacent);
  set_output(call, 0, q, q_offset, "q");
  set_output(call, 1, k, kv_offset, "k");
  set_output(call, 2, v, kv_offset, "v");
  run(call.args);
}

std::tuple<Tensor, Tensor, Tensor> qk_norm_rope(Tensor qkv, int64_t heads, int64_t kv_heads, OptionalTensor bias,
                                                OptionalTensor q_weight, OptionalTensor k_weight,
                                                OptionalTensor q_shift, OptionalTensor k_shift, int64_t norm,
                                                double eps, OptionalTensor cos, OptionalTensor sin, bool adjacent) {
  QkCall call =
      prepare_qk(qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, norm, eps, cos, sin, adjacent);
  const std::array<Tensor, 3> out = new_outputs(call);
  run(call.args);
  return {out[0], out[1], out[2]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("qk_norm_rope_", TORCH_BOX(&qk_norm_rope_));
  m.impl("qk_norm_rope", TORCH_BOX(&qk_norm_rope));
}

}  // namespace pfc::ops
