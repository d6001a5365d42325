// The operators of transformer blocks on CUDA.
#include "../cuda/launch.hpp"
#include "block_ops.hpp"
#include "cuda_launch.hpp"

namespace pfc::ops {

namespace {

struct OnCUDA {
  static void run(NormArgs& args, const Tensor& x) {
    const OnDevice device(x, "x");
    check_launch(cuda::block_norm(args, device.stream()), "norm_modulate");
  }
  static void run(GatedArgs& args, const Tensor& x) {
    const OnDevice device(x, "x");
    check_launch(cuda::block_gated(args, device.stream()), "gelu");
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) { BlockOperators<OnCUDA>::add_to(m); }

}  // namespace pfc::ops
