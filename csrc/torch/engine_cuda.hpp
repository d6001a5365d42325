// What network and trajectory share on CUDA: the layout, the scratch memory and the launch.
#pragma once

#include "../cuda/launch.hpp"
#include "cuda_launch.hpp"

namespace pfc::ops {

inline cuda::Precision engine_precision(int64_t precision, DType dtype) {
  PFC_CHECK(precision >= 0 && precision <= static_cast<int>(cuda::Precision::kBFloat16), "precision is ", precision,
            ", allowed are 0 (exact), 1 (tf32) and 2 (bf16)");
  PFC_CHECK(precision == 0 || dtype == DType::kFloat32, "precision is ", precision,
            ", which is for float32 states; float64 has 0 (exact) alone");
  return static_cast<cuda::Precision>(precision);
}

// The kernels read weights 16 bytes at a time: a view that begins elsewhere is copied.
inline Tensor aligned_params(const Tensor& params) {
  const Tensor flat = as_contiguous(params);
  return reinterpret_cast<uintptr_t>(flat.const_data_ptr()) % 16 == 0 ? flat : torch::stable::clone(flat);
}

// `like` is a tensor on the device.
inline void run_engine(const cuda::EngineArgs& args, const OnDevice& device, const Tensor& like, const char* op) {
  if (args.plan.batch == 0) return;
  cuda::EngineDevice limits;
  check_launch(cuda::engine_device(limits), op);
  cuda::EngineProgram program;
  PFC_CHECK(cuda::prepare_engine(args, limits, program),
            "layers: a tile of the network's activations needs more than the ", limits.shared_per_block,
            " bytes of shared memory that a block of this GPU has");
  // Freed when this returns, and given away again by torch only to work behind it on this stream.
  const Tensor scratch = torch::stable::new_empty(like, {program.scratch_bytes}, ScalarType::Byte);
  check_launch(cuda::engine(args, program, scratch.mutable_data_ptr(), device.stream()), op);
}

}  // namespace pfc::ops
