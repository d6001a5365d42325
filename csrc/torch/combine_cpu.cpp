// combine_ and combine on the CPU.
#include "../cpu/combine.hpp"
#include "combine.hpp"

namespace pfc::ops {

namespace {

// From this footprint on, buffers that are only written bypass the cache: measured in docs/notes/combine.md.
constexpr int64_t kStreamingBytes = int64_t{6} << 20;
// The least that is worth a thread of its own, in units: a pass over memory, or one that makes noise. Waking a second thread
// pays from some 64 K elements on where cores are idle (docs/notes/combine.md).
constexpr int64_t kGrainUnits = 32, kNoiseGrainUnits = 8;

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

// Streaming stores need every written-only buffer to begin on a cache line, each copy of the point included.
bool worth_streaming(const CombineArgs& args) {
  const int64_t numel = args.batch * args.sample;
  const int64_t out_bytes = args.branches * bytes_of(args.out_dtype);
  const int64_t inp_bytes = bytes_of(args.inp_dtype);
  int64_t slots = args.keep ? 1 : 0;
  for (int k = 0; k < kMaxSlots; ++k) slots += args.record[record::kB + k] != 0.0 || args.record[record::kE + k] != 0.0;
  const int64_t state_streams = 2 + (args.point_out ? 1 : 0) + slots;
  const int64_t footprint = numel * (out_bytes + args.copies * inp_bytes + state_streams * bytes_of(args.state_dtype));
  return footprint >= kStreamingBytes && aligned(args.point_out) && aligned(args.keep) && aligned(args.inp) &&
         (args.copies < 2 || numel * inp_bytes % 64 == 0);
}

void run(CombineArgs& args) {
  const int64_t numel = args.batch * args.sample;
  if (numel == 0) return;
  args.streaming = worth_streaming(args);
  const auto& kernel = cpu::kernels<cpu::CombineKernels>();
  const int64_t units = (numel + cpu::kUnit - 1) / cpu::kUnit;
  const int64_t grain = args.seeds ? kNoiseGrainUnits : kGrainUnits;
  if (units <= grain) return kernel.combine(args, 0, numel);
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const int64_t stop = end * cpu::kUnit;
    kernel.combine(args, begin * cpu::kUnit, stop < numel ? stop : numel);
  });
}

void combine_(Tensor x, OptionalTensor y, OptionalTensor y_out, OptionalTensor inp, OptionalTensor slots,
              OptionalTensor out, OptionalTensor out2, OptionalTensor guidance, OptionalTensor seeds, Tensor table,
              int64_t row) {
  CombineCall call = prepare_combine_(x, y, y_out, inp, slots, out, out2, guidance, seeds, table, row);
  run(call.args);
}

void combine_mixed_(Tensor x, OptionalTensor y, OptionalTensor y_out, OptionalTensor inp, OptionalTensor slots,
                    Tensor out, OptionalTensor out2, Tensor mix, OptionalTensor m, OptionalTensor seeds, Tensor table,
                    int64_t row) {
  CombineCall call = prepare_combine_mixed_(x, y, y_out, inp, slots, out, out2, mix, m, seeds, table, row);
  run(call.args);
}

std::tuple<Tensor, Tensor, Tensor> combine(Tensor x, OptionalTensor y, std::vector<Tensor> slots,
                                           std::vector<Tensor> outs, OptionalTensor guidance, OptionalTensor seeds,
                                           Tensor table, int64_t row) {
  CombineResult result;
  CombineCall call = prepare_combine(result, x, y, slots, outs, guidance, seeds, table, row);
  run(call.args);
  return {result.x, result.y, result.d};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("combine_", TORCH_BOX(&combine_));
  m.impl("combine_mixed_", TORCH_BOX(&combine_mixed_));
  m.impl("combine", TORCH_BOX(&combine));
}

}  // namespace pfc::ops
