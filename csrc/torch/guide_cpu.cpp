// guide_ on the CPU.
#include "../cpu/guide.hpp"
#include "guide.hpp"

namespace pfc::ops {

namespace {

// Chunks, and samples of up to one chunk, that are worth a thread of their own.
constexpr int64_t kGrainChunks = 16, kGrainSamples = 64;

template <class Range>
void in_parts(int64_t count, int64_t grain, const Range& range) {
  if (count <= grain) return range(0, count);
  torch::stable::parallel_for(0, count, grain, range);
}

void guide_(Tensor x, OptionalTensor y, OptionalTensor m, Tensor mix, Tensor scratch, Tensor out, OptionalTensor out2,
            Tensor guidance, Tensor rules, int64_t row) {
  const GuideCall call = prepare_guide(x, y, m, mix, scratch, out, out2, guidance, rules, row);
  const GuideArgs& args = call.args;
  if (args.batch * args.sample == 0) return;
  const auto& kernels = cpu::kernels<cpu::GuideKernels>();
  in_parts(args.batch * guide_chunks(args.sample), kGrainChunks,
           [&](int64_t begin, int64_t end) { kernels.partial(args, begin, end); });
  in_parts(args.batch, kGrainSamples, [&](int64_t begin, int64_t end) { kernels.finish(args, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { m.impl("guide_", TORCH_BOX(&guide_)); }

}  // namespace pfc::ops
