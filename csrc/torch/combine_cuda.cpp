// combine_ and combine on CUDA.
#include "../cuda/launch.hpp"
#include "combine.hpp"
#include "cuda_launch.hpp"

namespace pfc::ops {

namespace {

void run(const CombineArgs& args, const OnDevice& device, const char* op) {
  if (args.batch * args.sample == 0) return;
  check_launch(cuda::combine(args, device.stream()), op);
}

void combine_(Tensor x, OptionalTensor y, OptionalTensor y_out, OptionalTensor inp, OptionalTensor slots,
              OptionalTensor out, OptionalTensor out2, OptionalTensor guidance, OptionalTensor seeds, Tensor table,
              int64_t row) {
  const OnDevice device(x, "x");
  const CombineCall call = prepare_combine_(x, y, y_out, inp, slots, out, out2, guidance, seeds, table, row);
  run(call.args, device, "combine_");
}

void combine_mixed_(Tensor x, OptionalTensor y, OptionalTensor y_out, OptionalTensor inp, OptionalTensor slots,
                    Tensor out, OptionalTensor out2, Tensor mix, OptionalTensor m, OptionalTensor seeds, Tensor table,
                    int64_t row) {
  const OnDevice device(x, "x");
  const CombineCall call = prepare_combine_mixed_(x, y, y_out, inp, slots, out, out2, mix, m, seeds, table, row);
  run(call.args, device, "combine_mixed_");
}

std::tuple<Tensor, Tensor, Tensor> combine(Tensor x, OptionalTensor y, std::vector<Tensor> slots,
                                           std::vector<Tensor> outs, OptionalTensor guidance, OptionalTensor seeds,
                                           Tensor table, int64_t row) {
  const OnDevice device(x, "x");
  CombineResult result;
  const CombineCall call = prepare_combine(result, x, y, slots, outs, guidance, seeds, table, row);
  run(call.args, device, "combine");
  return {result.x, result.y, result.d};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) {
  m.impl("combine_", TORCH_BOX(&combine_));
  m.impl("combine_mixed_", TORCH_BOX(&combine_mixed_));
  m.impl("combine", TORCH_BOX(&combine));
}

}  // namespace pfc::ops
