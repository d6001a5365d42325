// group_norm_silu: from tensors to GroupNormArgs. What CPU and CUDA share.
#pragma once

#include <vector>

#include "../core/group_norm.hpp"
#include "tensors.hpp"

namespace pfc::ops {

struct GroupNormCall {
  GroupNormArgs args;
  std::vector<Tensor> held;

  const void* hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back().const_data_ptr();
  }
  bool empty() const { return args.batch * args.channels * args.spatial == 0; }
  // Memory of the rounds that share groups out in chunks.
  void use_chunks() {
    const int64_t groups = args.batch * args.groups;
    const Tensor memory =
        torch::stable::new_empty(held.front(), {2 * groups * (args.chunks() + 1)}, ScalarType::Double);
    held.push_back(memory);
    args.moments = static_cast<double*>(held.back().mutable_data_ptr());
    args.partial = args.moments + 2 * groups;
  }
};

inline GroupNormCall prepare_group_norm(const Tensor& x, int64_t groups, const OptionalTensor& weight,
                                        const OptionalTensor& bias, const OptionalTensor& scale,
                                        const OptionalTensor& shift, double eps, bool silu) {
  GroupNormCall call;
  GroupNormArgs& args = call.args;
  PFC_CHECK(x.dim() >= 2, "x must be [B, C, ...], got ", shape_of(x));
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.groups = groups;
  PFC_CHECK(groups > 0 && args.channels % groups == 0, "groups must divide the ", args.channels, " channels of x, got ",
            groups);
  args.spatial = 1;
  for (int64_t i = 2; i < x.dim(); ++i) args.spatial *= x.size(i);
  args.dtype = dtype_of(x, "x");
  args.eps = eps;
  args.silu = silu;
  args.x = call.hold(x);
  const Place place(x);
  const auto add = [&](const OptionalTensor& given, const OptionalTensor& first, const char* name, bool by_sample,
                       DType& dtype) -> const void* {
    if (!given) return nullptr;
    place.check(*given, name);
    const bool fits = by_sample ? given->dim() == 2 && given->size(0) == args.batch && given->size(1) == args.channels
                                : given->dim() == 1 && given->size(0) == args.channels;
    PFC_CHECK(fits, name, " has shape ", shape_of(*given), " for an x of ", shape_of(x));
    dtype = dtype_of(*given, name);
    PFC_CHECK(!first || dtype_of(*first, name) == dtype, name, " has another dtype than the tensor before it");
    return call.hold(*given);
  };
  args.weight = add(weight, std::nullopt, "weight", false, args.weight_dtype);
  args.bias = add(bias, weight, "bias", false, args.weight_dtype);
  args.scale = add(scale, std::nullopt, "scale", true, args.scale_dtype);
  args.shift = add(shift, scale, "shift", true, args.scale_dtype);
  return call;
}

// out may be x itself.
inline void set_output(GroupNormCall& call, const Tensor& x, const Tensor& out) {
  Place(x).check(out, "out");
  PFC_CHECK(same_shape(out, x) && out.scalar_type() == x.scalar_type(), "out is ",
            torch::headeronly::toString(out.scalar_type()), " ", shape_of(out), ", x is ",
            torch::headeronly::toString(x.scalar_type()), " ", shape_of(x));
  check_written(out, "out");
  call.args.out = out.mutable_data_ptr();
}

}  // namespace pfc::ops
