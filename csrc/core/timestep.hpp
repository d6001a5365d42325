// timestep_features: cosines and sines of scale t at geometric frequencies (Vaswani et al. 2017, section 3.5), in float64 from
// t on and rounded once: 1000 t times a frequency loses the digits that float32 has no place for.
#pragma once

#include "arguments.hpp"
#include "time_feature.hpp"

namespace pfc {

struct TimestepArgs {
  int64_t count = 0;  // times
  int64_t half = 0;   // frequencies; a time has as many cosines and as many sines
  DType t_dtype = DType::kFloat32, dtype = DType::kFloat32;  // dtype: float32 or float64
  const void* t = nullptr;
  void* out = nullptr;  // [count, 2 half]
  double scale = 1.0, period = 10000.0;
  double last = 0.0;  // frequencies run to period^(-(half - 1) / (half - last))
  bool sine_first = false;
};

PFC_HD double timestep_frequency(int64_t k, int64_t half, double period, double last) {
  return exact::exp(-exact::log(period) * (static_cast<double>(k) / (static_cast<double>(half) - last)));
}

}  // namespace pfc
