// guide_ on CUDA.
#include "../cuda/launch.hpp"
#include "cuda_launch.hpp"
#include "guide.hpp"

namespace pfc::ops {

namespace {

void guide_(Tensor x, OptionalTensor y, OptionalTensor m, Tensor mix, Tensor scratch, Tensor out, OptionalTensor out2,
            Tensor guidance, Tensor rules, int64_t row) {
  const OnDevice device(x, "x");
  const GuideCall call = prepare_guide(x, y, m, mix, scratch, out, out2, guidance, rules, row);
  if (call.args.batch * call.args.sample == 0) return;
  check_launch(cuda::guide(call.args, device.stream()), "guide_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) { m.impl("guide_", TORCH_BOX(&guide_)); }

}  // namespace pfc::ops
