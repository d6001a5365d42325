// group_norm_silu: out = act((x - mean) inverse w + b) with a modulation per sample, h (1 + scale) + shift, before the activation
// (Wu & He 2018; the modulation: Dhariwal & Nichol 2021, section 3).
//
// Sums are float64, of x minus the mean of its group's first elements, so that a mean far from zero costs no digits. Their order
// is the same on every instruction set and device: a group in chunks of kNormChunk elements, a chunk in kGroupLanes partial sums of
// which the l-th adds the elements l, l + kGroupLanes, ..., the lanes added by halves, the chunks in order.
#pragma once

#include "arguments.hpp"
#include "exact_math.hpp"

namespace pfc {

inline constexpr int kGroupLanes = 16;
inline constexpr int64_t kNormChunk = 1024;

struct GroupNormArgs {
  int64_t batch = 0, channels = 0, groups = 0, spatial = 0;  // elements of a channel
  DType dtype = DType::kFloat32, weight_dtype = DType::kFloat32, scale_dtype = DType::kFloat32;
  const void* x = nullptr;
  void* out = nullptr;           // may be x
  const void* weight = nullptr;  // [channels], or null
  const void* bias = nullptr;
  const void* scale = nullptr;  // [batch, channels], or null
  const void* shift = nullptr;
  double eps = 0.0;
  bool silu = true;
  double* partial = nullptr;  // two for each chunk of each group, where groups are shared out in chunks
  double* moments = nullptr;  // two for each group, likewise: mean and inverse deviation
  bool streaming = false;

  PFC_HD int64_t group_size() const { return channels / groups * spatial; }
  PFC_HD int64_t chunks() const { return (group_size() + kNormChunk - 1) / kNormChunk; }
};

// The pivot: the mean of the first kGroupLanes elements, or of what there is. load(i) gives the group's i-th as a double.
template <class Load>
PFC_HD double norm_pivot(int64_t size, const Load& load) {
  const int count = size < kGroupLanes ? static_cast<int>(size) : kGroupLanes;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum = sum + load(i);
  return sum / static_cast<double>(count);
}

struct Moments {
  double mean, inverse;
};

// From the sums over a group of x - pivot and of its square.
PFC_HD Moments moments_of(double pivot, double sum, double squares, int64_t count, double eps) {
  const double n = static_cast<double>(count), shift = sum / n;
  const double variance = (squares - sum * shift) / n;
  // Rounding may leave a negative one; the comparison keeps what is not a number.
  return {pivot + shift, 1.0 / exact::sqrt((variance < 0.0 ? 0.0 : variance) + eps)};
}

// A channel of one sample: (x - centre) factor + offset. What the mean loses in S is in the offset.
template <class S>
struct ChannelAffine {
  S centre, factor, offset;
};

template <class S>
PFC_HD ChannelAffine<S> channel_affine(const Moments& m, double weight, double bias, double scale, double shift) {
  const S centre = static_cast<S>(m.mean);
  const double more = 1.0 + scale, factor = m.inverse * weight * more;
  const double offset = (bias * more + shift) + (static_cast<double>(centre) - m.mean) * factor;
  return {centre, static_cast<S>(factor), static_cast<S>(offset)};
}

}  // namespace pfc
