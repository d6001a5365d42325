// patchify and unpatchify: from tensors to PatchArgs. What CPU and CUDA share.
#pragma once

#include "../core/patches.hpp"
#include "tensors.hpp"

namespace pfc::ops {

struct PatchCall {
  PatchArgs args;
  Tensor from;
};

inline void check_patch(int64_t high, int64_t wide) {
  PFC_CHECK(high > 0 && wide > 0, "patch must have positive sides, got ", high, " and ", wide);
}

inline void set_ends(PatchCall& call, const Tensor& from, const Tensor& to) {
  Place(from).check(to, "out");
  check_written(to, "out");
  call.from = as_contiguous(from);
  call.args.from_dtype = dtype_of(from, "x");
  call.args.to_dtype = dtype_of(to, "out");
  call.args.from = call.from.const_data_ptr();
  call.args.to = to.mutable_data_ptr();
}

inline PatchCall prepare_patchify(const Tensor& x, const Tensor& out, int64_t high, int64_t wide, bool channels_first) {
  check_patch(high, wide);
  PFC_CHECK(x.dim() == 4 && x.size(2) % high == 0 && x.size(3) % wide == 0, "x must be [B, C, rows * ", high,
            ", columns * ", wide, "], got ", shape_of(x));
  PatchCall call{{}, x};
  PatchArgs& args = call.args;
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.rows = x.size(2) / high;
  args.columns = x.size(3) / wide;
  args.high = high;
  args.wide = wide;
  args.channels_first = channels_first;
  args.to_tokens = true;
  PFC_CHECK(out.dim() == 3 && out.size(0) == args.batch && out.size(1) == args.rows * args.columns &&
                out.size(2) == args.token(),
            "out must be [", args.batch, ", ", args.rows * args.columns, ", ", args.token(), "], got ", shape_of(out));
  set_ends(call, x, out);
  return call;
}

inline PatchCall prepare_unpatchify(const Tensor& tokens, const Tensor& out, int64_t high, int64_t wide,
                                    bool channels_first) {
  check_patch(high, wide);
  PFC_CHECK(out.dim() == 4 && out.size(2) % high == 0 && out.size(3) % wide == 0, "out must be [B, C, rows * ", high,
            ", columns * ", wide, "], got ", shape_of(out));
  PatchCall call{{}, tokens};
  PatchArgs& args = call.args;
  args.batch = out.size(0);
  args.channels = out.size(1);
  args.rows = out.size(2) / high;
  args.columns = out.size(3) / wide;
  args.high = high;
  args.wide = wide;
  args.channels_first = channels_first;
  args.to_tokens = false;
  PFC_CHECK(tokens.dim() == 3 && tokens.size(0) == args.batch && tokens.size(1) == args.rows * args.columns &&
                tokens.size(2) == args.token(),
            "tokens must be [", args.batch, ", ", args.rows * args.columns, ", ", args.token(), "], got ",
            shape_of(tokens));
  set_ends(call, tokens, out);
  return call;
}

}  // namespace pfc::ops
