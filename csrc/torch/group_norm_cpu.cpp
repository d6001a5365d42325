// group_norm_silu and group_norm_silu_ on the CPU.
#include "group_norm.hpp"

#include "../cpu/token.hpp"
#include "token.hpp"

namespace pfc::ops {

namespace {

// A group up to this size is read a second time from a core's own cache.
constexpr int64_t kGroupBytes = int64_t{512} << 10;
// Fewer groups than this are shared out in chunks: cores would have none, or unequal numbers.
constexpr int64_t kFewGroups = 8;

void run(GroupNormCall& call) {
  if (call.empty()) return;
  GroupNormArgs& args = call.args;
  const int64_t size = args.group_size(), groups = args.batch * args.groups, bytes = bytes_of(args.dtype);
  args.streaming = args.out != args.x && 2 * groups * size * bytes >= kStreamingBytes &&
                   args.spatial * bytes % 64 == 0 && on_line(args.out);
  const auto& kernels = cpu::kernels<cpu::TokenKernels>();
  const bool shared = groups < kFewGroups && groups * size >= 2 * kGrainElements;
  if (size * bytes <= kGroupBytes && !shared)
    return in_units(groups, size, [&](int64_t begin, int64_t end) { kernels.group_norm(args, begin, end); });
  call.use_chunks();
  const int64_t chunks = groups * args.chunks();
  in_units(chunks, kNormChunk, [&](int64_t begin, int64_t end) { kernels.group_norm_partial(args, begin, end); });
  in_units(groups, 2 * args.chunks(), [&](int64_t begin, int64_t end) { kernels.group_norm_finish(args, begin, end); });
  in_units(chunks, kNormChunk, [&](int64_t begin, int64_t end) { kernels.group_norm_apply(args, begin, end); });
}

void group_norm_silu_(Tensor x, Tensor out, int64_t groups, OptionalTensor weight, OptionalTensor bias,
                      OptionalTensor scale, OptionalTensor shift, double eps, bool silu) {
  GroupNormCall call = prepare_group_norm(x, groups, weight, bias, scale, shift, eps, silu);
  set_output(call, x, out);
  run(call);
}

Tensor group_norm_silu(Tensor x, int64_t groups, OptionalTensor weight, OptionalTensor bias, OptionalTensor scale,
                       OptionalTensor shift, double eps, bool silu) {
  GroupNormCall call = prepare_group_norm(x, groups, weight, bias, scale, shift, eps, silu);
  const Tensor out = torch::stable::empty_like(call.held.front());
  set_output(call, x, out);
  run(call);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("group_norm_silu_", TORCH_BOX(&group_norm_silu_));
  m.impl("group_norm_silu", TORCH_BOX(&group_norm_silu));
}

}  // namespace pfc::ops
