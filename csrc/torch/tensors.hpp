// Checks that every operator shares, and the way from tensors to core/arguments.hpp. The messages name the argument,
// what came and what is allowed.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>

#include "../core/arguments.hpp"

namespace pfc::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

#define PFC_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: break;
  }
  PFC_CHECK(false, name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
            ", allowed are float32, float64, bfloat16 and float16");
  return DType::kFloat32;
}

// Where an operator runs: every tensor argument must be on the device of the first.
struct Place {
  torch::stable::Device device;
  explicit Place(const Tensor& first) : device(first.device()) {}
  void check(const Tensor& tensor, const char* name) const {
    PFC_CHECK(tensor.device() == device, name, " is on another device than the first tensor argument (device types ",
              static_cast<int>(tensor.device().type()), " and ", static_cast<int>(device.type()), ", indices ",
              tensor.get_device_index(), " and ", device.index(), ")");
  }
};

// Buffers that an operator writes are refused unless contiguous: a copy would lose what was written.
inline void check_written(const Tensor& tensor, const char* name) {
  PFC_CHECK(tensor.is_contiguous(), name, " is written and must be contiguous; call .contiguous() before");
}

inline void check_batch_seeds(const Tensor& seeds, int64_t batch) {
  PFC_CHECK(seeds.scalar_type() == ScalarType::Long, "seeds must be int64, got ",
            torch::headeronly::toString(seeds.scalar_type()));
  PFC_CHECK(seeds.dim() == 1 && seeds.size(0) == batch, "seeds must have shape [", batch, "], one per sample, got ",
            shape_of(seeds));
}

// The elements of a sample; 1 for a batch of scalars.
inline int64_t sample_size(const Tensor& tensor) {
  int64_t size = 1;
  for (int64_t i = 1; i < tensor.dim(); ++i) size *= tensor.size(i);
  return size;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

// [M * batch, the rest as reference]: how many times the batch it is.
inline int64_t copies_of(const Tensor& tensor, const Tensor& reference, const char* name) {
  bool ok = tensor.dim() == reference.dim() && reference.size(0) > 0 && tensor.size(0) > 0 &&
            tensor.size(0) % reference.size(0) == 0;
  for (int64_t i = 1; ok && i < tensor.dim(); ++i) ok = tensor.size(i) == reference.size(i);
  if (!ok && tensor.dim() == reference.dim() && reference.size(0) == 0 && tensor.size(0) == 0) return 1;
  PFC_CHECK(ok, name, " has shape ", shape_of(tensor), ", expected [M * B, ...] for the state's ", shape_of(reference));
  return tensor.size(0) / reference.size(0);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace pfc::ops
