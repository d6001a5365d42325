// qk_norm_rope and group_norm_silu on CUDA.
#include "../cuda/token.hpp"
#include "cuda_launch.hpp"
#include "group_norm.hpp"
#include "qk_norm_rope.hpp"

namespace pfc::ops {

namespace {

void run(const QkArgs& args, const OnDevice& device, const char* name) {
  if (args.batch * args.tokens * (args.heads + args.kv_heads) == 0) return;
  check_launch(cuda::qk_norm_rope(args, device.stream()), name);
}

void run(GroupNormCall& call, const OnDevice& device, const char* name) {
  if (call.empty()) return;
  call.use_chunks();
  check_launch(cuda::group_norm(call.args, device.stream()), name);
}

void qk_norm_rope_(Tensor qkv, Tensor q, Tensor k, Tensor v, int64_t heads, int64_t kv_heads, OptionalTensor bias,
                   OptionalTensor q_weight, OptionalTensor k_weight, OptionalTensor q_shift, OptionalTensor k_shift,
                   int64_t norm, double eps, OptionalTensor cos, OptionalTensor sin, bool adjacent, int64_t q_offset,
                   int64_t kv_offset) {
  const OnDevice device(qkv, "qkv");
  QkCall call =
      prepare_qk(qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, norm, eps, cos, sin, adjacent);
  set_output(call, 0, q, q_offset, "q");
  set_output(call, 1, k, kv_offset, "k");
  set_output(call, 2, v, kv_offset, "v");
  run(call.args, device, "qk_norm_rope_");
}

std::tuple<Tensor, Tensor, Tensor> qk_norm_rope(Tensor qkv, int64_t heads, int64_t kv_heads, OptionalTensor bias,
                                                OptionalTensor q_weight, OptionalTensor k_weight,
                                                OptionalTensor q_shift, OptionalTensor k_shift, int64_t norm,
                                                double eps, OptionalTensor cos, OptionalTensor sin, bool adjacent) {
  const OnDevice device(qkv, "qkv");
  QkCall call =
      prepare_qk(qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, norm, eps, cos, sin, adjacent);
  const std::array<Tensor, 3> out = new_outputs(call);
  run(call.args, device, "qk_norm_rope");
  return {out[0], out[1], out[2]};
}

void group_norm_silu_(Tensor x, Tensor out, int64_t groups, OptionalTensor weight, OptionalTensor bias,
                      OptionalTensor scale, OptionalTensor shift, double eps, bool silu) {
  const OnDevice device(x, "x");
  GroupNormCall call = prepare_group_norm(x, groups, weight, bias, scale, shift, eps, silu);
  set_output(call, x, out);
  run(call, device, "group_norm_silu_");
}

Tensor group_norm_silu(Tensor x, int64_t groups, OptionalTensor weight, OptionalTensor bias, OptionalTensor scale,
                       OptionalTensor shift, double eps, bool silu) {
  const OnDevice device(x, "x");
  GroupNormCall call = prepare_group_norm(x, groups, weight, bias, scale, shift, eps, silu);
  const Tensor out = torch::stable::empty_like(call.held.front());
  set_output(call, x, out);
  run(call, device, "group_norm_silu");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) {
  m.impl("qk_norm_rope_", TORCH_BOX(&qk_norm_rope_));
  m.impl("qk_norm_rope", TORCH_BOX(&qk_norm_rope));
  m.impl("group_norm_silu_", TORCH_BOX(&group_norm_silu_));
  m.impl("group_norm_silu", TORCH_BOX(&group_norm_silu));
}

}  // namespace pfc::ops
