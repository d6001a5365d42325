// A feature of time, in float64, from multiplication, addition and integer operations alone: the same bits on every device.
#pragma once

#include "exact_math.hpp"
#include "network.hpp"

namespace pfc {

// sin(angle) if quarter is 0, cos(angle) if it is 1. pi / 2 in three parts, of which the first two have 33 bits (Cody & Waite
// 1980): up to 2^20 quarters the reduction is exact to below the result's rounding; beyond, its error stays below that of the
// angle's own last bit.
PFC_HD double sine_of_quarters(double angle, int quarter) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 2^52: adding it rounds to a whole number
  const double turns = angle * 0x1.45f306dc9c883p-1;
  // Also false for NaN. Whoever asks for more has lost every digit of the angle.
  if (!(turns > -0x1p51 && turns < 0x1p51)) return (angle - angle) / (angle - angle);
  const double shifted = turns + kShift;
  const double q = shifted - kShift;
  const double r = ((angle - q * 0x1.921fb544p+0) - q * 0x1.0b4611a6p-34) - q * 0x1.3198a2e037073p-69;
  const int64_t octant = exact::bit_cast<int64_t>(shifted) + quarter;
  const double value = (octant & 1) != 0 ? exact::cos_octant(r) : exact::sin_octant(r);
  return (octant & 2) != 0 ? -value : value;
}

PFC_HD double time_feature(Feature kind, double frequency, double phase, double t) {
  const double angle = frequency * t + phase;
  if (kind == Feature::kLinear) return angle;
  return sine_of_quarters(angle, kind == Feature::kCosine ? 1 : 0);
}

}  // namespace pfc
