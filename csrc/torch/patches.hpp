// patchify and unpatchify: from tensors to PatchArgs. What CPU and CUDA share.
#pragma once

#include "../core/patches.hpp"
#include "tensors.hpp"

namespace pfc::ops {

struct PatchCall {
  PatchArgs args;
  Tensor from;

  bool empty() const { return args.batch * args.rows * args.columns * args.token() == 0; }
};

// `from` is the image, named x, or the tokens; `to`, named out, is the other.
inline PatchCall prepare_patches(const Tensor& from, const Tensor& to, int64_t high, int64_t wide, bool channels_first,
                                 bool to_tokens) {
  const Tensor& image = to_tokens ? from : to;
  const Tensor& tokens = to_tokens ? to : from;
  const char* const from_name = to_tokens ? "x" : "tokens";
  PFC_CHECK(high > 0 && wide > 0, "patch must have positive sides, got ", high, " and ", wide);
  PFC_CHECK(image.dim() == 4 && image.size(2) % high == 0 && image.size(3) % wide == 0, to_tokens ? "x" : "out",
            " must be [B, C, rows * ", high, ", columns * ", wide, "], got ", shape_of(image));
  PatchCall call{{}, from};
  PatchArgs& args = call.args;
  args.batch = image.size(0);
  args.channels = image.size(1);
  args.rows = image.size(2) / high;
  args.columns = image.size(3) / wide;
  args.high = high;
  args.wide = wide;
  args.channels_first = channels_first;
  args.to_tokens = to_tokens;
  PFC_CHECK(tokens.dim() == 3 && tokens.size(0) == args.batch && tokens.size(1) == args.rows * args.columns &&
                tokens.size(2) == args.token(),
            to_tokens ? "out" : "tokens", " must be [", args.batch, ", ", args.rows * args.columns, ", ", args.token(),
            "], got ", shape_of(tokens));
  Place(from).check(to, "out");
  check_written(to, "out");
  call.from = as_contiguous(from);
  args.from_dtype = dtype_of(from, from_name);
  args.to_dtype = dtype_of(to, "out");
  args.from = call.from.const_data_ptr();
  args.to = to.mutable_data_ptr();
  return call;
}

}  // namespace pfc::ops
