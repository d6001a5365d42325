// randn and interpolate: from tensors to their arguments. What CPU and CUDA share.
#pragma once

#include <limits>
#include <vector>

#include "tensors.hpp"

namespace pfc::ops {

inline uint32_t counter_word(int64_t value, const char* name) {
  PFC_CHECK(value >= 0 && value <= std::numeric_limits<uint32_t>::max(), name, " is ", value,
            ", allowed are 0 to 2^32 - 1");
  return static_cast<uint32_t>(value);
}

struct NormalCall {
  NormalArgs args;
  Tensor seeds, out;
};

inline NormalCall prepare_randn(const Tensor& seeds, const std::vector<int64_t>& shape, int64_t stream, int64_t draw,
                                ScalarType dtype) {
  PFC_CHECK(seeds.dim() == 1, "seeds must have shape [B], got ", shape_of(seeds));
  check_batch_seeds(seeds, seeds.size(0));
  std::vector<int64_t> sizes{seeds.size(0)};
  int64_t sample = 1;
  for (int64_t size : shape) {
    PFC_CHECK(size >= 0, "shape has a negative size, ", size);
    sizes.push_back(size);
    sample *= size;
  }
  NormalCall call{{}, as_contiguous(seeds), torch::stable::new_empty(seeds, sizes, dtype)};
  call.args.dtype = dtype_of(call.out, "dtype");
  call.args.batch = seeds.size(0);
  call.args.sample = sample;
  call.args.seeds = static_cast<const int64_t*>(call.seeds.const_data_ptr());
  call.args.stream = counter_word(stream, "stream");
  call.args.draw = counter_word(draw, "draw");
  call.args.out = call.out.mutable_data_ptr();
  return call;
}

struct InterpolateCall {
  InterpolateArgs args;
  Tensor point, target;
  std::vector<Tensor> held;

  const void* hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back().const_data_ptr();
  }
};

inline InterpolateCall prepare_interpolate(const Tensor& data, const Tensor& t, const OptionalTensor& x0,
                                           const OptionalTensor& seeds, int64_t path, double path_a, double path_b,
                                           int64_t prediction, int64_t stream, int64_t draw) {
  PFC_CHECK(data.dim() >= 1, "data must have a batch dimension, got a scalar");
  PFC_CHECK(x0.has_value() != seeds.has_value(), "exactly one of x0 and seeds must be given");
  PFC_CHECK(path >= 0 && path <= static_cast<int>(PathKind::kVE), "path is ", path, ", not a known kind");
  PFC_CHECK(prediction >= 0 && prediction <= static_cast<int>(Prediction::kV), "prediction is ", prediction,
            ", not a known kind");
  const Place place(data);
  place.check(t, "t");
  PFC_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double,
            "t must be float32 or float64, got ", torch::headeronly::toString(t.scalar_type()));
  PFC_CHECK(t.dim() == 1 && t.size(0) == data.size(0), "t must have shape [", data.size(0), "], got ", shape_of(t));
  InterpolateCall call;
  InterpolateArgs& args = call.args;
  args.dtype = dtype_of(data, "data");
  args.batch = data.size(0);
  args.sample = sample_size(data);
  args.path = {static_cast<PathKind>(path), path_a, path_b};
  args.prediction = static_cast<Prediction>(prediction);
  args.stream = counter_word(stream, "stream");
  args.draw = counter_word(draw, "draw");
  args.data = call.hold(data);
  args.t = call.hold(t);
  args.t_is_double = t.scalar_type() == ScalarType::Double;
  if (x0) {
    place.check(*x0, "x0");
    PFC_CHECK(same_shape(*x0, data) && x0->scalar_type() == data.scalar_type(), "x0 is ",
              torch::headeronly::toString(x0->scalar_type()), " ", shape_of(*x0), ", data is ",
              torch::headeronly::toString(data.scalar_type()), " ", shape_of(data), "; they must agree");
    args.noise = call.hold(*x0);
  } else {
    place.check(*seeds, "seeds");
    check_batch_seeds(*seeds, args.batch);
    args.seeds = static_cast<const int64_t*>(call.hold(*seeds));
  }
  const Tensor& like = call.held[0];
  call.point = torch::stable::empty_like(like);
  call.target = torch::stable::empty_like(like);
  args.point = call.point.mutable_data_ptr();
  args.target = call.target.mutable_data_ptr();
  return call;
}

}  // namespace pfc::ops
