// The operators of transformer blocks on the CPU.
#include "../cpu/block.hpp"

#include "../cpu/engine.hpp"
#include "block_ops.hpp"

namespace pfc::ops {

namespace {

// As for combine_ (docs/notes/combine.md): from this footprint on outputs bypass the cache; the least elements for a thread.
constexpr int64_t kStreamingBytes = int64_t{6} << 20;
constexpr int64_t kGrain = int64_t{32} << 10;

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Streaming stores need rows that begin on a cache line.
bool worth_streaming(int64_t tensors, int64_t rows, int64_t width, DType dtype, const void* first, const void* second) {
  const int64_t line = width * bytes_of(dtype);
  return tensors * rows * line >= kStreamingBytes && (rows == 1 || line % 64 == 0) &&
         reinterpret_cast<uintptr_t>(first) % 64 == 0 && reinterpret_cast<uintptr_t>(second) % 64 == 0;
}

template <class Range>
void in_parts(int64_t count, int64_t grain, const Range& range) {
  if (count <= grain) return range(0, count);
  torch::stable::parallel_for(0, count, grain, range);
}

struct OnCPU {
  static void run(NormArgs& args, const Tensor&) {
    const bool in_place = args.x_out == args.x;
    const int64_t tensors = (args.y ? 3 : 1) + (args.out ? 1 : 0);
    args.streaming =
        worth_streaming(tensors, args.rows, args.width, args.dtype, in_place ? nullptr : args.x_out, args.out);
    const auto& kernels = cpu::kernels<cpu::BlockKernels>();
    in_parts(args.rows, 1 + kGrain / args.width, [&](int64_t begin, int64_t end) {
      void* scratch = cpu::thread_scratch(static_cast<std::size_t>(cpu::norm_scratch_bytes(args)));
      kernels.norm(args, scratch, begin, end);
    });
  }

  static void run(GatedArgs& args, const Tensor&) {
    const int64_t tensors = args.kind == Gated::kSwiGLU ? 3 : 2;
    args.streaming =
        args.out != args.x && worth_streaming(tensors, args.rows, args.width, args.dtype, args.out, nullptr);
    const auto& kernels = cpu::kernels<cpu::BlockKernels>();
    const int64_t numel = args.rows * args.width;
    // Whole units, so that a thread's part begins on a cache line.
    in_parts((numel + cpu::kUnit - 1) / cpu::kUnit, kGrain / cpu::kUnit, [&](int64_t begin, int64_t end) {
      const int64_t stop = end * cpu::kUnit;
      kernels.gated(args, begin * cpu::kUnit, stop < numel ? stop : numel);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) { BlockOperators<OnCPU>::add_to(m); }

}  // namespace pfc::ops
