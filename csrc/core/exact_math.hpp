// log, sin, cos and exp from multiplication, addition, division, sqrt and integer operations alone, so that every
// compiler, instruction set and device gives the same bits. No fused multiply-add may be formed: the build turns
// contraction off, for the reasons in DESIGN (the baseline x86 set has none, and neither has NumPy).
//
// Polynomials: Chebyshev interpolation of the reduced functions in 50 digits, coefficients then rounded.
// The float32 functions work on any V that has + - * (a float, or a vector of floats); the NumPy twins that the
// tests compare against bit for bit are in python_tests/reference/.
#pragma once

#include <cstdint>

#include "macros.hpp"

namespace pfc::exact {

template <class To, class From>
PFC_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

PFC_HD float sqrt(float x) { return __builtin_sqrtf(x); }
PFC_HD double sqrt(double x) { return __builtin_sqrt(x); }

// Natural logarithm of a positive normal float32; below 2 ulp.
// x = 2^k m with m in [sqrt(1/2), sqrt(2)), f = m - 1, log m = f - f^2/2 + f^3 P(f).
PFC_HD float log(float x) {
  const int32_t bits = bit_cast<int32_t>(x) - 0x3f3504f3;  // 0x3f3504f3 is sqrt(1/2)
  const int32_t k = bits >> 23;
  const float f = bit_cast<float>((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  const float n = static_cast<float>(k);
  float p = 0.06971611827611923f;
  p = p * f + -0.11479733884334564f;
  p = p * f + 0.11685419827699661f;
  p = p * f + -0.12425687164068222f;
  p = p * f + 0.14249058067798615f;
  p = p * f + -0.1666780263185501f;
  p = p * f + 0.20000715553760529f;
  p = p * f + -0.2499999701976776f;
  p = p * f + 0.3333333134651184f;
  const float f2 = f * f;
  // ln 2 in two parts: the first has 12 bits, so n times it is exact.
  const float low = n * 3.194618329871446e-05f + (f2 * f * p - 0.5f * f2);
  return n * 0.693115234375f + (f + low);
}

// What the float64 log and exp need of a number: its bits and back. csrc/cpu has the same of vectors.
template <class V>
struct Binary64;
template <>
struct Binary64<double> {
  static PFC_HD double all(double value) { return value; }
  static PFC_HD double number(int64_t bits) { return static_cast<double>(bits); }
  static PFC_HD int64_t whole(double value) { return static_cast<int64_t>(value); }  // towards 0
  static PFC_HD int64_t to_bits(double value) { return bit_cast<int64_t>(value); }
  static PFC_HD double from_bits(int64_t bits) { return bit_cast<double>(bits); }
};

// Natural logarithm of a positive normal float64; below 2 ulp.
// x = 2^k m with m in [sqrt(1/2), sqrt(2)), s = (m - 1) / (m + 1), log m = 2 atanh(s) = 2 s + s^3 P(s^2).
template <class V>
PFC_HD V log_of(V x) {
  using B = Binary64<V>;
  const auto bits = B::to_bits(x) - 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  const V n = B::number(bits >> 52);
  const V f = B::from_bits((bits & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd) - 1.0;
  const V s = f / (2.0 + f);
  const V z = s * s;
  V p = B::all(0x1.0c06cf14c641bp-3);
  p = p * z + 0x1.0fbe478772696p-3;
  p = p * z + 0x1.3b1c38474d3eep-3;
  p = p * z + 0x1.745cf8f6c9119p-3;
  p = p * z + 0x1.c71c72017a15cp-3;
  p = p * z + 0x1.2492492476ba1p-2;
  p = p * z + 0x1.9999999999a38p-2;
  p = p * z + 0x1.5555555555555p-1;
  const V low = s * z * p + n * 0x1.a39ef35793c76p-33;
  return n * 0x1.62e42fee00000p-1 + (2.0 * s + low);
}
PFC_HD double log(double x) { return log_of(x); }

// sin and cos of an angle in [0, pi/4], float32, below 1 ulp.
PFC_HD float sin_octant(float a) {
  const float z = a * a;
  float p = 2.7249925551586784e-06f;
  p = p * z + -0.00019840087043121457f;
  p = p * z + 0.008333331905305386f;
  p = p * z + -0.1666666716337204f;
  return a + a * (z * p);
}
PFC_HD float cos_octant(float a) {
  const float z = a * a;
  float p = -2.730095900460583e-07f;
  p = p * z + 2.480059993104078e-05f;
  p = p * z + -0.00138888880610466f;
  p = p * z + 0.0416666679084301f;
  return 1.0f - (0.5f * z - z * z * p);
}

PFC_HD double sin_octant(double a) {
  const double z = a * a;
  double p = -0x1.ab17d404de5b3p-41;
  p = p * z + 0x1.61217f0b800d5p-33;
  p = p * z + -0x1.ae645412c560cp-26;
  p = p * z + 0x1.71de3a546095bp-19;
  p = p * z + -0x1.a01a01a019938p-13;
  p = p * z + 0x1.1111111111110p-7;
  p = p * z + -0x1.5555555555555p-3;
  return a + a * (z * p);
}
PFC_HD double cos_octant(double a) {
  const double z = a * a;
  double p = 0x1.ab785b00b4646p-45;
  p = p * z + -0x1.9394ba0cd6ed5p-37;
  p = p * z + 0x1.1eed8deb97a97p-29;
  p = p * z + -0x1.27e4fb7712d65p-22;
  p = p * z + 0x1.a01a01a019d0ap-16;
  p = p * z + -0x1.6c16c16c16c16p-10;
  p = p * z + 0x1.5555555555555p-5;
  return 1.0 - (0.5 * z - z * z * p);
}

inline constexpr double kHalfPi = 0x1.921fb54442d18p+0;

// sin(pi t / 2) and cos(pi t / 2) for t in [0, 1]; exact at both ends.
PFC_HD double sin_half_pi(double t) { return t <= 0.5 ? sin_octant(kHalfPi * t) : cos_octant(kHalfPi * (1.0 - t)); }
PFC_HD double cos_half_pi(double t) { return t <= 0.5 ? cos_octant(kHalfPi * t) : sin_octant(kHalfPi * (1.0 - t)); }

// exp(r) - 1 on [-ln2/2, ln2/2].
template <class V>
PFC_HD V expm1_reduced(V r) {
  V p = Binary64<V>::all(0x1.61bfa22dd3437p-33);
  p = p * r + 0x1.1f7f2000f4cf3p-29;
  p = p * r + 0x1.ae642c8730352p-26;
  p = p * r + 0x1.27e4d41d6f553p-22;
  p = p * r + 0x1.71de3a5aa6edbp-19;
  p = p * r + 0x1.a01a01a9e80fep-16;
  p = p * r + 0x1.a01a01a0196aep-13;
  p = p * r + 0x1.6c16c16c15a6cp-10;
  p = p * r + 0x1.1111111111110p-7;
  p = p * r + 0x1.5555555555557p-5;
  p = p * r + 0x1.5555555555555p-3;
  p = p * r + 0.5;
  return r + r * r * p;
}

// exp(x) for |x| <= 700, float64, below 2 ulp.
template <class V>
PFC_HD V exp_within(V x) {
  using B = Binary64<V>;
  const auto k = B::whole(x * 0x1.71547652b82fep+0 + (x < 0.0 ? B::all(-0.5) : B::all(0.5)));
  const V n = B::number(k);
  const V r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  return B::from_bits((k + 1023) << 52) * (1.0 + expm1_reduced(r));
}
// Outside, the result is 0 or the value at 700.
PFC_HD double exp(double x) {
  if (x < -700.0) return 0.0;
  if (x > 700.0) x = 700.0;
  return exp_within(x);
}

// exp(x) - 1 without cancellation near 0; x in [-700, 700].
PFC_HD double expm1(double x) { return (x > -0.34 && x < 0.34) ? expm1_reduced(x) : exp(x) - 1.0; }

}  // namespace pfc::exact
