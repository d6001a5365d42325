// The operators of transformer blocks: from tensors to core/block.hpp. What CPU and CUDA share.
//
// All tensors of a call have one dtype. x [B, ..., C] is copied where it is not contiguous; shift, scale and gate [B, C] are read
// where they lie if their rows are, whatever is between two of them.
#pragma once

#include <cmath>
#include <tuple>
#include <vector>

#include "../core/block.hpp"
#include "tensors.hpp"

namespace pfc::ops {

// Keeps what a call borrowed or copied alive until the kernel has it.
struct Held {
  std::vector<Tensor> tensors;

  const void* contiguous(const Tensor& tensor) {
    tensors.push_back(as_contiguous(tensor));
    return tensors.back().const_data_ptr();
  }
};

struct NormCall {
  NormArgs args;
  Held held;
  Tensor x;  // contiguous
};

struct GatedCall {
  GatedArgs args;
  Held held;
};

inline void check_dtype(const Tensor& tensor, const Tensor& x, const char* name) {
  Place(x).check(tensor, name);
  PFC_CHECK(tensor.scalar_type() == x.scalar_type(), name, " is ", torch::headeronly::toString(tensor.scalar_type()),
            ", x is ", torch::headeronly::toString(x.scalar_type()), "; they must agree");
}

// [C], the same for every row.
inline const void* vector_of(Held& held, const OptionalTensor& tensor, const Tensor& x, int64_t width,
                             const char* name) {
  if (!tensor) return nullptr;
  check_dtype(*tensor, x, name);
  PFC_CHECK(tensor->dim() == 1 && tensor->size(0) == width, name, " must have shape [", width, "], got ",
            shape_of(*tensor));
  return held.contiguous(*tensor);
}

// [B, C], one row for each sample.
inline Rows rows_of(Held& held, const OptionalTensor& tensor, const Tensor& x, const char* name) {
  if (!tensor) return {};
  check_dtype(*tensor, x, name);
  const int64_t batch = x.size(0), width = x.size(x.dim() - 1);
  PFC_CHECK(tensor->dim() == 2 && tensor->size(0) == batch && tensor->size(1) == width, name, " must have shape [",
            batch, ", ", width, "], got ", shape_of(*tensor));
  if (width > 1 && tensor->stride(1) != 1) return {held.contiguous(*tensor), width};
  held.tensors.push_back(*tensor);
  return {tensor->const_data_ptr(), batch > 1 ? tensor->stride(0) : 0};
}

inline void set_tokens(NormCall& call, const Tensor& x) {
  PFC_CHECK(x.dim() >= 2, "x must have shape [B, ..., C], got ", shape_of(x));
  NormArgs& args = call.args;
  args.dtype = dtype_of(x, "x");
  args.width = x.size(x.dim() - 1);
  args.tokens = 1;
  for (int64_t i = 1; i + 1 < x.dim(); ++i) args.tokens *= x.size(i);
  args.rows = x.size(0) * args.tokens;
  call.x = as_contiguous(x);
  args.x = call.x.const_data_ptr();
}

inline void set_residual(NormCall& call, const Tensor& y, const OptionalTensor& gate, const OptionalTensor& y_bias) {
  check_dtype(y, call.x, "y");
  PFC_CHECK(same_shape(y, call.x), "y has shape ", shape_of(y), ", x has ", shape_of(call.x));
  call.args.y = call.held.contiguous(y);
  call.args.gate = rows_of(call.held, gate, call.x, "gate");
  call.args.y_bias = vector_of(call.held, y_bias, call.x, call.args.width, "y_bias");
}

inline void set_norm(NormCall& call, const OptionalTensor& shift, const OptionalTensor& scale,
                     const OptionalTensor& weight, const OptionalTensor& bias, bool rms, double eps) {
  PFC_CHECK(std::isfinite(eps) && eps >= 0.0, "eps must be finite and not negative, got ", eps);
  call.args.rms = rms;
  call.args.eps = eps;
  call.args.shift = rows_of(call.held, shift, call.x, "shift");
  call.args.scale = rows_of(call.held, scale, call.x, "scale");
  call.args.weight = vector_of(call.held, weight, call.x, call.args.width, "weight");
  call.args.bias = vector_of(call.held, bias, call.x, call.args.width, "bias");
}

// A result of x's shape. torch may not be asked for the address of no elements; a kernel is not started for them either.
inline Tensor result_like(const Tensor& x, void*& data) {
  Tensor result = torch::stable::empty_like(x);
  data = result.mutable_data_ptr();
  return result;
}

inline GatedCall prepare_gated(const Tensor& x, const OptionalTensor& bias, Gated kind) {
  GatedCall call;
  GatedArgs& args = call.args;
  PFC_CHECK(x.dim() >= 1, "x must have shape [..., C], got a scalar");
  const int64_t last = x.size(x.dim() - 1);
  const bool pair = kind == Gated::kSwiGLU;
  PFC_CHECK(!pair || last % 2 == 0, "x's last dimension must be even, got ", last);
  args.dtype = dtype_of(x, "x");
  args.kind = kind;
  args.width = pair ? last / 2 : last;
  args.rows = last > 0 ? x.numel() / last : 0;
  args.bias = vector_of(call.held, bias, x, last, "bias");
  args.x = call.held.contiguous(x);
  // Where rows do not matter there is one.
  if (!pair && !bias) {
    args.width = args.rows * args.width;
    args.rows = args.width > 0 ? 1 : 0;
  }
  return call;
}

}  // namespace pfc::ops
