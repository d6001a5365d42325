// adaptive_ on the CPU.
#include "adaptive.hpp"

#include "../cpu/adaptive.hpp"

namespace pfc::ops {

namespace {

// Elements, and samples however small, that are worth a thread of their own.
constexpr int64_t kGrainElements = 16384, kGrainSamples = 256;
// Samples from this many chunks on are shared among threads where there are few of them.
constexpr int64_t kManyChunks = 32, kFewSamples = 16;

template <class Range>
void in_parts(int64_t count, int64_t grain, const Range& range) {
  if (count <= grain) return range(0, count);
  torch::stable::parallel_for(0, count, grain, range);
}

void adaptive_(Tensor f, Tensor x, Tensor y, OptionalTensor inp, Tensor t, Tensor k, Tensor clock, Tensor counts,
               Tensor rows, Tensor running, Tensor partial, OptionalTensor steps, OptionalTensor home, Tensor times,
               Tensor table, int64_t norm_elements, int64_t max_nfe, double sign) {
  const AdaptiveCall call = prepare_adaptive(f, x, y, inp, t, k, clock, counts, rows, running, partial, steps, home,
                                             times, table, norm_elements, max_nfe, sign);
  const AdaptiveArgs& args = call.args;
  if (args.places * args.sample == 0) return;
  const auto& kernels = cpu::kernels<cpu::AdaptiveKernels>();
  const int64_t chunks = guide_chunks(args.sample);
  if (chunks >= kManyChunks && args.places < kFewSamples) {
    const auto each = [&](void (*kernel)(const AdaptiveArgs&, int64_t, int64_t)) {
      in_parts(args.places * chunks, 16, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    };
    each(kernels.sums);
    kernels.control(args, 0, args.places);
    each(kernels.apply);
    return;
  }
  const int64_t grain = kGrainElements / args.sample;
  in_parts(args.places,
           grain < 1               ? 1
           : grain < kGrainSamples ? grain
                                   : kGrainSamples,
           [&](int64_t begin, int64_t end) { kernels.adaptive(args, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { m.impl("adaptive_", TORCH_BOX(&adaptive_)); }

}  // namespace pfc::ops
