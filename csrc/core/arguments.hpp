// What a kernel is given: raw pointers, counts and scalars. The torch layer checks tensors and fills these; the CPU
// kernels and the CUDA launchers take them. `record` is host memory on every device; all other pointers are the
// device's.
#pragma once

#include <cstdint>

#include "interpolate.hpp"
#include "philox.hpp"
#include "row.hpp"

namespace pfc {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

inline constexpr int kMaxBranches = 8;

struct CombineArgs {
  int64_t batch = 0, sample = 0;  // samples, elements in a sample
  DType state_dtype = DType::kFloat32, out_dtype = DType::kFloat32, inp_dtype = DType::kFloat32;
  const double* record = nullptr;  // the row
  const void* x = nullptr;
  void* x_out = nullptr;        // may be x
  const void* point = nullptr;  // where the field was evaluated; may be x
  void* point_out = nullptr;    // the next point, in the state's dtype
  void* inp = nullptr;          // `copies` copies of the next point, scaled and cast
  int64_t copies = 0;
  const void* slot[kMaxSlots] = {};
  void* keep = nullptr;  // where D goes, if the row keeps it
  const void* branch[kMaxBranches] = {};
  int branches = 0;
  const void* scale = nullptr;  // guidance scales of this row, state's dtype
  int64_t scale_branch_stride = 0, scale_sample_stride = 0;
  // The weights of core/guide.hpp in place of scales: branches + 1 of them, one more for the point.
  bool mixed = false, mixes_point = false;
  const void* momentum = nullptr;  // in place of the first difference
  const int64_t* seeds = nullptr;
  uint32_t stream = static_cast<uint32_t>(Stream::kPlan);
  bool streaming = false;  // pure outputs bypass the cache
};

struct NormalArgs {
  int64_t batch = 0, sample = 0;
  const int64_t* seeds = nullptr;
  uint32_t stream = 0, draw = 0;
  DType dtype = DType::kFloat32;
  void* out = nullptr;
};

struct InterpolateArgs {
  int64_t batch = 0, sample = 0;
  DType dtype = DType::kFloat32;
  Path path;
  Prediction prediction = Prediction::kVelocity;
  const void* data = nullptr;
  const void* noise = nullptr;  // x0, or null: drawn from the seeds
  const int64_t* seeds = nullptr;
  uint32_t stream = 0, draw = 0;
  const void* t = nullptr;
  bool t_is_double = false;
  void* point = nullptr;
  void* target = nullptr;
};

}  // namespace pfc
