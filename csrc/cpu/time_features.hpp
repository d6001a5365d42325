// Features of time in float64, rounded once to S. One routine for one time and for a time per sample, so that both give the
// same bits.
#pragma once

#include <cmath>

#include "../core/exact_math.hpp"
#include "../core/network.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

inline constexpr double kLargestAngle = 1.0e6;

// The records, side by side for vectors: `turn` is 0 for a sine, 1 for a cosine, -1 for the angle itself.
struct FeatureColumns {
  double* frequency;
  double* phase;
  int64_t* turn;
  int count;

  static int64_t doubles(int count) { return 3 * static_cast<int64_t>(count); }
};

PFC_INLINE FeatureColumns feature_columns(const Network& net, double* memory) {
  FeatureColumns columns{memory, memory + net.feature_count, reinterpret_cast<int64_t*>(memory + 2 * net.feature_count),
                         net.feature_count};
  for (int f = 0; f < net.feature_count; ++f) {
    const double* rec = net.features + f * feature_record::kWidth;
    const auto kind = static_cast<Feature>(static_cast<int>(rec[feature_record::kKind]));
    columns.frequency[f] = rec[feature_record::kFrequency];
    columns.phase[f] = rec[feature_record::kPhase];
    columns.turn[f] = kind == Feature::kLinear ? -1 : kind == Feature::kSine ? 0 : 1;
  }
  return columns;
}

// sin of a + turn pi/2, for |a| <= kLargestAngle: a minus the nearest multiple of pi/2, which is taken off in three parts, of
// which two have 33 bits, so that n times them is exact. Nothing but operations that a loop over it vectorises.
PFC_INLINE double turned_sine(double a, int64_t turn) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 2^52
  const double shifted = a * 0x1.45f306dc9c883p-1 + kShift;
  const double n = shifted - kShift;
  const double r = ((a - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
  const int64_t quadrant = exact::bit_cast<int64_t>(shifted) + turn;
  const int64_t odd = -(quadrant & 1);
  const int64_t bits =
      (odd & exact::bit_cast<int64_t>(exact::cos_octant(r))) | (~odd & exact::bit_cast<int64_t>(exact::sin_octant(r)));
  return exact::bit_cast<double>(bits ^ ((quadrant & 2) << 62));
}

template <class S>
inline void time_features(const FeatureColumns& columns, double t, S* __restrict out) {
  const double* __restrict frequency = columns.frequency;
  const double* __restrict phase = columns.phase;
  const int64_t* __restrict turn = columns.turn;
  double largest = 0.0;
  for (int f = 0; f < columns.count; ++f) {
    const double angle = t * frequency[f] + phase[f];
    const int64_t linear = turn[f] >> 63;
    const int64_t bits =
        (linear & exact::bit_cast<int64_t>(angle)) | (~linear & exact::bit_cast<int64_t>(turned_sine(angle, turn[f])));
    out[f] = static_cast<S>(exact::bit_cast<double>(bits));
  }
  for (int f = 0; f < columns.count; ++f) {
    const double size = __builtin_fabs(t * frequency[f] + phase[f]);
    largest = size > largest || !(size == size) ? size : largest;
  }
  if (largest <= kLargestAngle) return;
  for (int f = 0; f < columns.count; ++f) {
    const double angle = t * frequency[f] + phase[f];
    if (turn[f] < 0 || __builtin_fabs(angle) <= kLargestAngle) continue;
    out[f] = static_cast<S>(turn[f] == 0 ? __builtin_sin(angle) : __builtin_cos(angle));
  }
}

}  // namespace
}  // namespace pfc::cpu
