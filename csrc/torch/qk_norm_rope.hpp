// qk_norm_rope: from tensors to QkArgs. What CPU and CUDA share.
#pragma once

#include <array>
#include <vector>

#include "../core/qk_norm_rope.hpp"
#include "tensors.hpp"

namespace pfc::ops {

struct QkCall {
  QkArgs args;
  std::vector<Tensor> held;

  const void* hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back().const_data_ptr();
  }
};

// What the product gave and what becomes of it; not yet where it goes.
inline QkCall prepare_qk(const Tensor& qkv, int64_t heads, int64_t kv_heads, const OptionalTensor& bias,
                         const OptionalTensor& q_weight, const OptionalTensor& k_weight, const OptionalTensor& q_shift,
                         const OptionalTensor& k_shift, int64_t norm, double eps, const OptionalTensor& cos,
                         const OptionalTensor& sin, bool adjacent) {
  QkCall call;
  QkArgs& args = call.args;
  PFC_CHECK(qkv.dim() == 3, "qkv must be [B, N, (heads + 2 kv_heads) D], got ", shape_of(qkv));
  PFC_CHECK(heads >= 0 && kv_heads >= 0 && heads + kv_heads > 0 && heads < 65536 && kv_heads < 65536,
            "heads and kv_heads must not be negative nor both zero, got ", heads, " and ", kv_heads);
  const int64_t parts = heads + 2 * kv_heads;
  const int64_t width = qkv.size(2);
  PFC_CHECK(width > 0 && width % parts == 0 && width / parts <= kMaxHead, "qkv has ", width, " columns, for ", heads,
            " heads and ", kv_heads, " kv_heads they must be ", parts, " D with D from 1 to ", kMaxHead);
  PFC_CHECK(norm >= 0 && norm <= static_cast<int>(HeadNorm::kLayer), "norm is ", norm, ", not a known kind");
  const Place place(qkv);
  args.batch = qkv.size(0);
  args.tokens = qkv.size(1);
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.head = static_cast<int>(width / parts);
  args.dtype = dtype_of(qkv, "qkv");
  args.norm = static_cast<HeadNorm>(norm);
  args.eps = eps;
  args.adjacent = adjacent;
  // Rows of a wider product are read where they lie.
  call.held.push_back(qkv.stride(2) == 1 ? qkv : torch::stable::contiguous(qkv));
  const Tensor& read = call.held.back();
  args.batch_stride = read.stride(0);
  args.token_stride = read.stride(1);
  args.qkv = read.const_data_ptr();
  if (bias) {
    place.check(*bias, "bias");
    PFC_CHECK(bias->dim() == 1 && bias->size(0) == width, "bias must be [", width, "], got ", shape_of(*bias));
    args.bias_dtype = dtype_of(*bias, "bias");
    args.bias = call.hold(*bias);
  }
  bool typed = false;
  const auto parameter = [&](const OptionalTensor& given, const char* name) -> const void* {
    if (!given) return nullptr;
    place.check(*given, name);
    PFC_CHECK(args.norm != HeadNorm::kNone, name, " was given, and no norm that it belongs to");
    PFC_CHECK(given->dim() == 1 && given->size(0) == args.head, name, " must be [", args.head, "], got ",
              shape_of(*given));
    const DType dtype = dtype_of(*given, name);
    PFC_CHECK(!typed || dtype == args.weight_dtype, name, " has another dtype than the norms' other parameters");
    typed = true;
    args.weight_dtype = dtype;
    return call.hold(*given);
  };
  args.weight[0] = parameter(q_weight, "q_weight");
  args.weight[1] = parameter(k_weight, "k_weight");
  args.shift[0] = parameter(q_shift, "q_shift");
  args.shift[1] = parameter(k_shift, "k_shift");
  PFC_CHECK(cos.has_value() == sin.has_value(), "cos and sin must be given both or not at all");
  if (!cos) return call;
  place.check(*cos, "cos");
  place.check(*sin, "sin");
  PFC_CHECK(args.head % 2 == 0, "cos: heads of ", args.head, " dimensions cannot turn in pairs");
  const bool own = cos->dim() == 3;
  const int64_t columns = cos->dim() > 0 ? cos->size(cos->dim() - 1) : 0;
  PFC_CHECK((cos->dim() == 2 || (own && cos->size(0) == args.batch)) && cos->size(cos->dim() - 2) == args.tokens &&
                (columns == args.head || columns == args.head / 2) && same_shape(*cos, *sin),
            "cos and sin must be [", args.tokens, ", ", args.head / 2, " or ", args.head, "], or that for each of ",
            args.batch, " samples, got ", shape_of(*cos), " and ", shape_of(*sin));
  args.table_dtype = dtype_of(*cos, "cos");
  PFC_CHECK(dtype_of(*sin, "sin") == args.table_dtype, "cos and sin must have one dtype");
  args.columns = static_cast<int>(columns);
  args.table_batch = own ? args.tokens * columns : 0;
  args.cos = call.hold(*cos);
  args.sin = call.hold(*sin);
  return call;
}

// Tokens offset .. offset + N of a buffer [B, heads, M, D] whose heads are contiguous.
inline void set_output(QkCall& call, int which, const Tensor& buffer, int64_t offset, const char* name) {
  QkArgs& args = call.args;
  Place(call.held.front()).check(buffer, name);
  const int64_t heads = which == 0 ? args.heads : args.kv_heads;
  PFC_CHECK(buffer.dim() == 4 && buffer.size(0) == args.batch && buffer.size(1) == heads &&
                buffer.size(3) == args.head && dtype_of(buffer, name) == args.dtype,
            name, " must be [", args.batch, ", ", heads, ", M, ", args.head, "] of qkv's dtype, got ", shape_of(buffer),
            " of ", torch::headeronly::toString(buffer.scalar_type()));
  PFC_CHECK(offset >= 0 && offset <= buffer.size(2) - args.tokens, name, " has ", buffer.size(2), " tokens, ",
            args.tokens, " from ", offset, " on do not fit");
  check_written(buffer, name);
  args.out_batch[which] = heads * buffer.size(2) * args.head;
  args.out_head[which] = buffer.size(2) * args.head;
  args.out[which] =
      static_cast<char*>(buffer.mutable_data_ptr()) + offset * args.head * static_cast<int64_t>(buffer.element_size());
}

inline std::array<Tensor, 3> new_outputs(QkCall& call) {
  QkArgs& args = call.args;
  const Tensor& like = call.held.front();
  std::array<Tensor, 3> out{};
  constexpr const char* kNames[] = {"q", "k", "v"};
  for (int which = 0; which < 3; ++which) {
    const int64_t heads = which == 0 ? args.heads : args.kv_heads;
    out[which] = torch::stable::new_empty(like, {args.batch, heads, args.tokens, args.head});
    set_output(call, which, out[which], 0, kNames[which]);
  }
  return out;
}

}  // namespace pfc::ops
