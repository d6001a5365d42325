// Vectors whose lanes are samples: float64 of a native vector, and as many of any other type.
#pragma once

#include <type_traits>
#include <utility>

#include "../core/exact_math.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

inline constexpr int kLanes = Wide<double>::kLanes;
using Doubles = NativeOf<double, kLanes>::type;
using Wholes = NativeOf<int64_t, kLanes>::type;  // a comparison's answer too: -1 where it holds, or 0
template <class S>
using LanesOf = typename NativeOf<S, kLanes>::type;

template <class To, class From>
PFC_INLINE To convert_lanes(const From& v) {
  if constexpr (std::is_same_v<To, From>)
    return v;
  else
    return __builtin_convertvector(v, To);
}
PFC_INLINE Doubles all_lanes(double value) { return Doubles{} + value; }
PFC_INLINE Wholes all_lanes(int64_t value) { return Wholes{} + value; }
PFC_INLINE Doubles lanes_size(const Doubles& v) { return v < 0.0 ? -v : v; }
PFC_INLINE Wholes lanes_finite(const Doubles& v) { return v - v == 0.0; }
PFC_INLINE Doubles lanes_sqrt(Doubles v) {
#if defined(__AVX512F__)
  const __m512d root = _mm512_sqrt_pd(load_bytes<__m512d>(&v));
  return load_bytes<Doubles>(&root);
#else
  for (int l = 0; l < kLanes; ++l) v[l] = __builtin_sqrt(v[l]);
  return v;
#endif
}
PFC_INLINE bool any_lane(const Wholes& mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi64_mask(load_bytes<__m512i>(&mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_pd(load_bytes<__m256d>(&mask)) != 0;
#else
  int64_t any = 0;
  for (int l = 0; l < kLanes; ++l) any |= mask[l];
  return any != 0;
#endif
}

// Elements of kLanes samples that lie one after the other in memory, as a vector for each element, and back.
template <class S, int... kLane>
PFC_INLINE void split_pairs(const S* from, LanesOf<S>* to, std::integer_sequence<int, kLane...>) {
  const auto a = load_bytes<LanesOf<S>>(from), b = load_bytes<LanesOf<S>>(from + kLanes);
  to[0] = __builtin_shufflevector(a, b, (2 * kLane)...);
  to[1] = __builtin_shufflevector(a, b, (2 * kLane + 1)...);
}
template <class S, int... kLane>
PFC_INLINE void join_pairs(const LanesOf<S>* from, S* to, std::integer_sequence<int, kLane...>) {
  constexpr int kHalf = kLanes / 2;
  const LanesOf<S> low = __builtin_shufflevector(from[0], from[1], (kLane / 2 + kLane % 2 * kLanes)...);
  const LanesOf<S> high = __builtin_shufflevector(from[0], from[1], (kHalf + kLane / 2 + kLane % 2 * kLanes)...);
  store_bytes(to, low, false);
  store_bytes(to + kLanes, high, false);
}
template <class S>
PFC_INLINE void to_lanes(const S* from, int sample, LanesOf<S>* to) {
  if (sample == 2) return split_pairs<S>(from, to, std::make_integer_sequence<int, kLanes>{});
  for (int e = 0; e < sample; ++e) {
    LanesOf<S> v{};
    for (int l = 0; l < kLanes; ++l) v[l] = from[l * sample + e];
    to[e] = v;
  }
}
template <class S>
PFC_INLINE void from_lanes(const LanesOf<S>* from, int sample, S* to) {
  if (sample == 2) return join_pairs<S>(from, to, std::make_integer_sequence<int, kLanes>{});
  for (int e = 0; e < sample; ++e)
    for (int l = 0; l < kLanes; ++l) to[l * sample + e] = from[e][l];
}

}  // namespace
}  // namespace pfc::cpu

namespace pfc::exact {

template <>
struct Binary64<cpu::Doubles> {
  static PFC_HD cpu::Doubles all(double value) { return cpu::all_lanes(value); }
  static PFC_HD cpu::Doubles number(const cpu::Wholes& bits) { return __builtin_convertvector(bits, cpu::Doubles); }
  static PFC_HD cpu::Wholes whole(const cpu::Doubles& value) { return __builtin_convertvector(value, cpu::Wholes); }
  static PFC_HD cpu::Wholes to_bits(const cpu::Doubles& value) { return bit_cast<cpu::Wholes>(value); }
  static PFC_HD cpu::Doubles from_bits(const cpu::Wholes& bits) { return bit_cast<cpu::Doubles>(bits); }
};

}  // namespace pfc::exact
