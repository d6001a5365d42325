// timestep_features: from tensors to TimestepArgs. What CPU and CUDA share.
#pragma once

#include "../core/timestep.hpp"
#include "tensors.hpp"

namespace pfc::ops {

struct TimestepCall {
  TimestepArgs args;
  Tensor t, out;
};

inline TimestepCall prepare_timesteps(const Tensor& t, int64_t width, double scale, double period, double last,
                                      bool sine_first, ScalarType dtype) {
  PFC_CHECK(t.dim() == 1, "t must be [B], got ", shape_of(t));
  PFC_CHECK(width > 0 && width % 2 == 0, "width must be even and at least 2, got ", width);
  PFC_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "dtype must be float32 or float64, got ",
            torch::headeronly::toString(dtype));
  PFC_CHECK(period >= 1.0 && period <= 1e300, "period must be from 1 to 1e300, got ", period);
  PFC_CHECK(last < static_cast<double>(width / 2), "last must be below width / 2 = ", width / 2, ", got ", last);
  TimestepCall call{{}, as_contiguous(t), torch::stable::new_empty(t, {t.size(0), width}, dtype)};
  call.args.count = t.size(0);
  call.args.half = width / 2;
  call.args.t_dtype = dtype_of(t, "t");
  call.args.dtype = dtype_of(call.out, "dtype");
  call.args.t = call.t.const_data_ptr();
  call.args.out = call.out.mutable_data_ptr();
  call.args.scale = scale;
  call.args.period = period;
  call.args.last = last;
  call.args.sine_first = sine_first;
  return call;
}

}  // namespace pfc::ops
