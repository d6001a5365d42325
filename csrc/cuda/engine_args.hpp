// What the engine's kernels are asked for: one evaluation of a network, or a whole plan over it. Pointers are the device's,
// except those of the tables.
#pragma once

#include "../core/arguments.hpp"
#include "../core/network.hpp"

namespace pfc::cuda {

// Of the products: as they are, or of operands rounded to tf32 or bf16 and summed in float32 by the tensor cores.
enum class Precision : int { kExact, kTF32, kBFloat16 };

struct EngineArgs {
  Network network;
  Precision precision = Precision::kExact;
  int64_t batch = 0;
  const void* x0 = nullptr;    // [batch, dim]
  void* x = nullptr;           // the result: the state after the last row, or the network's output
  const void* cond = nullptr;  // [branches batch, conditions]

  // One evaluation, without rows: t is [batch], or one time for all: on the device, or `time` where t is null.
  bool single = false;
  const void* t = nullptr;
  DType t_dtype = DType::kFloat32;
  bool t_per_sample = false;
  double time = 0.0;

  // A plan: host memory, except what is said otherwise.
  int64_t rows = 0;
  const double* times = nullptr;
  const double* table = nullptr;
  const int64_t* branches = nullptr;
  const void* scale = nullptr;  // device: guidance scales
  int64_t scale_row_stride = 0, scale_branch_stride = 0, scale_sample_stride = 0;
  const int64_t* seeds = nullptr;  // device
  uint32_t stream = static_cast<uint32_t>(Stream::kPlan);
  const int64_t* keep_rows = nullptr;
  int64_t kept = 0;
  void* states = nullptr;  // device [kept, batch, dim]
  void* points = nullptr;  // device [rows that evaluate, batch, dim], or null
};

// What the layout of a launch depends on.
struct EngineDevice {
  int multiprocessors = 1;
  int64_t shared_per_block = 48 << 10, shared_per_multiprocessor = 64 << 10;
};

}  // namespace pfc::cuda
