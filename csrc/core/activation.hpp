// The activations of core/network.hpp and their slopes, within 2 ulp everywhere.
//
// V is what is computed on: a float, a double, or a compiler's vector of them. M gives M::mul_add(a, b, c) = a b + c, fused or
// not: results may differ in their last bits between two instruction sets, never between two calls on one. SiLU and sigmoid
// of float32 are computed in float32, where the multiply-add is fused; the others in float64 (`Wide`), which leaves them little
// more than the last rounding; for float64 each device has its own (cpu/exact_activation.hpp).
//
// Polynomials: Chebyshev interpolation of the reduced functions in 50 digits, coefficients then rounded, as in
// exact_math.hpp. nan stays nan; at infinity a function has its limit, so that silu(-inf) is 0.
#pragma once

#include <cstdint>

#include "exact_math.hpp"
#include "network.hpp"

namespace pfc::activation {

// f(z) and f'(z); the slope is 0 where it is not asked for.
template <class V>
struct Answer {
  V value, slope;
};

// The integers of a float's or a double's width: for vectors, what a comparison gives.
template <class V>
struct BitsOf {
  using type = decltype(V{} < V{});
};
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};

template <class V, class C>
PFC_HD V splat(C c) {
  return V{} + c;
}

inline constexpr double kSELUScale = 1.05070098735548049342, kSELUAlpha = 1.67326324235437728482;
inline constexpr double kGELULinear =
    0x1.9884533d43651p+0;  // 2 sqrt(2 / pi); gelu_tanh is z sigmoid(kGELULinear (z + ..))
inline constexpr double kGELUCubic = 0.044715;
inline constexpr double kNormalDensity = 0x1.9884533d43651p-2;  // 1 / sqrt(2 pi)
inline constexpr double kSoftplusThreshold = 20.0;

// ------------------------------------------------------------------------------------------- float32, in float32

inline constexpr float kShift32 = 12582912.0f;  // 1.5 2^23: adding it rounds to a whole number

// 1 + e^a as (d + low) / inverse, for a >= 0, where inverse is a power of two: so nothing overflows, and nothing becomes
// subnormal before the last multiplication. low is what d lost when it was rounded.
template <class V>
struct Logistic32 {
  V d, low, inverse;
};

template <class M, class V>
PFC_HD V nearly_reciprocal(V d) {  // 14 bits are enough
  if constexpr (requires { M::reciprocal_estimate(d); })
    return M::reciprocal_estimate(d);
  else
    return 1.0f / d;
}

// M::mul_add must be fused: residuals are taken by it. Beyond 128 nothing is left of the result.
template <class M, class V>
PFC_HD Logistic32<V> logistic(V a) {
  using I = typename BitsOf<V>::type;
  const V shifted = M::mul_add(a, splat<V>(1.44269504f), splat<V>(kShift32));
  const V n = shifted - kShift32;
  // ln 2 in two parts: the first has 12 bits, so n times it is exact.
  V r = M::mul_add(n, splat<V>(-0.693115234375f), a);
  r = M::mul_add(n, splat<V>(-3.194618329871446e-05f), r);
  V p = splat<V>(0.001381454f);
  p = M::mul_add(p, r, splat<V>(0.008368745f));
  p = M::mul_add(p, r, splat<V>(0.04166839f));
  p = M::mul_add(p, r, splat<V>(0.16666521f));
  p = M::mul_add(p, r, splat<V>(0.49999994f));
  const V expm1 = M::mul_add(r * r, p, r);                   // e^r - 1
  const I whole = exact::bit_cast<I>(shifted) - 0x4b400000;  // kShift32's bits, which device code cannot take from it
  const I half = whole >> 1;
  const V power = exact::bit_cast<V>((whole - half + 127) << 23), inverse = exact::bit_cast<V>((127 - half) << 23);
  const V rest = M::mul_add(expm1, power, inverse);
  const V d = power + rest;
  const V low = (power - d) + rest;
  return {d, low, inverse};
}

// a / (d + low), to half an ulp and the square of the estimate's error.
template <class M, class V>
PFC_HD V quotient(V a, const Logistic32<V>& e) {
  const V estimate = nearly_reciprocal<M>(e.d);
  const V q = a * estimate;
  return M::mul_add(M::mul_add(-q, e.low, M::mul_add(-q, e.d, a)), estimate, q);
}

template <class V>
PFC_HD V bounded_magnitude(V z) {
  using I = typename BitsOf<V>::type;
  const V a = exact::bit_cast<V>(exact::bit_cast<I>(z) & INT32_MAX);
  return a > 128.0f ? splat<V>(128.0f) : a;
}

// max(z, 0) - |z| / (1 + e^|z|).
template <class M, bool kSlope, class V>
PFC_HD Answer<V> silu(V z) {
  const V a = bounded_magnitude(z);
  const Logistic32<V> e = logistic<M>(a);
  const V value = M::mul_add(-quotient<M>(a, e), e.inverse, z < 0.0f ? V{} : z);
  if constexpr (!kSlope) return {value, V{}};
  const V tail = quotient<M>(splat<V>(1.0f), e) * e.inverse;
  const V here = z < 0.0f ? tail : 1.0f - tail, there = z < 0.0f ? 1.0f - tail : tail;
  return {value, M::mul_add(value, there, here)};
}

template <class M, bool kSlope, class V>
PFC_HD Answer<V> sigmoid(V z) {
  const Logistic32<V> e = logistic<M>(bounded_magnitude(z));
  const V q = quotient<M>(splat<V>(1.0f), e);
  const V value = z < 0.0f ? q * e.inverse : M::mul_add(-q, e.inverse, splat<V>(1.0f));
  if constexpr (!kSlope) return {value, V{}};
  return {value, (q * e.inverse) * M::mul_add(-q, e.inverse, splat<V>(1.0f))};
}

// ------------------------------------------------------------------------------------------- float32, in float64

// Below 2^-29 for x in [-700, 700]: e^x = power (1 + m).
template <class V>
struct Power64 {
  V m, power;
};

template <class M, class V>
PFC_HD Power64<V> exp_wide(V x) {
  using I = typename BitsOf<V>::type;
  constexpr double kShift = 6755399441055744.0;  // 1.5 2^52
  const V shifted = M::mul_add(x, splat<V>(0x1.71547652b82fep+0), splat<V>(kShift));
  const V n = shifted - kShift;
  const V r = M::mul_add(n, splat<V>(-0x1.62e42fefa39efp-1), x);
  V p = splat<V>(0x1.a124f19fe89acp-13);
  p = M::mul_add(p, r, splat<V>(0x1.6d43246b523b4p-10));
  p = M::mul_add(p, r, splat<V>(0x1.1110e0f238322p-7));
  p = M::mul_add(p, r, splat<V>(0x1.5554e9063586ep-5));
  p = M::mul_add(p, r, splat<V>(0x1.5555555a78ed4p-3));
  p = M::mul_add(p, r, splat<V>(0x1.0000000b9129bp-1));
  // The shift's own low bits are zero: n is all that is left after shifting the rest out.
  const V power = exact::bit_cast<V>((exact::bit_cast<I>(shifted) << 52) + (I{} + (int64_t{1023} << 52)));
  return {M::mul_add(r * r, p, r), power};
}

template <class M, class V>
PFC_HD V exp_of(V x) {
  const Power64<V> e = exp_wide<M>(x);
  return M::mul_add(e.power, e.m, e.power);
}

template <class M, class V>
PFC_HD V expm1_of(V x) {
  const Power64<V> e = exp_wide<M>(x);
  return M::mul_add(e.power, e.m, e.power - 1.0);
}

template <class V>
PFC_HD V at_least(V z, double low) {
  return z < low ? splat<V>(low) : z;
}

template <class V>
PFC_HD V at_most(V z, double high) {
  return z > high ? splat<V>(high) : z;
}

template <class V>
PFC_HD V magnitude(V z) {
  return z < 0.0 ? -z : z;
}

template <class M, bool kSlope>
struct Wide {
  // z Phi(z). The upper tail is e^(-a^2/2) r P(r - c), with r = 1/(a + 3) and a = |z|; beyond 14.6 nothing is left of it.
  template <class V>
  PFC_HD static Answer<V> gelu(V given) {
    const V z = at_least(given, -14.6);
    const V a = at_most(magnitude(z), 14.6);
    const V r = 1.0 / (a + 3.0);
    const V s = r - 0x1.8f83e0f83e0f8p-3;
    V p = splat<V>(0x1.a2a07614e356ap+11);
    p = M::mul_add(p, s, splat<V>(-0x1.86a73f10156d1p+8));
    p = M::mul_add(p, s, splat<V>(-0x1.3c2de019c79bep+9));
    p = M::mul_add(p, s, splat<V>(0x1.4cc1fb68017c1p+7));
    p = M::mul_add(p, s, splat<V>(0x1.77cb3ab927757p+6));
    p = M::mul_add(p, s, splat<V>(-0x1.4e2425d32b37fp+5));
    p = M::mul_add(p, s, splat<V>(-0x1.477e3c19a5f62p+4));
    p = M::mul_add(p, s, splat<V>(0x1.084623219814ep+3));
    p = M::mul_add(p, s, splat<V>(0x1.22578cb1beac9p+3));
    p = M::mul_add(p, s, splat<V>(0x1.c65f687cb8a86p+1));
    p = M::mul_add(p, s, splat<V>(0x1.a5473919fed20p-1));
    const V density = exp_of<M>(a * a * -0.5);
    const V tail = density * (r * p);
    const V phi = z < 0.0 ? tail : 1.0 - tail;
    if constexpr (!kSlope) return {z * phi, V{}};
    return {z * phi, M::mul_add(z * density, splat<V>(kNormalDensity), phi)};
  }

  // z sigmoid(w), w = 2 sqrt(2/pi) (z + 0.044715 z^3).
  template <class V>
  PFC_HD static Answer<V> gelu_tanh(V given) {
    const V z = at_least(given, -100.0);
    const V square = z * z;
    V w = z * M::mul_add(square, splat<V>(kGELULinear * kGELUCubic), splat<V>(kGELULinear));
    w = at_most(at_least(w, -700.0), 700.0);
    const V e = exp_of<M>(z < 0.0 ? w : -w);
    const V d = 1.0 / (1.0 + e);
    const V here = (z < 0.0 ? e : splat<V>(1.0)) * d;
    if constexpr (!kSlope) return {z * here, V{}};
    // Where z^3 leaves float64 its product with the vanished e does not matter.
    const V bounded = at_most(z, 100.0);
    const V bend = M::mul_add(bounded * bounded, splat<V>(3.0 * kGELULinear * kGELUCubic), splat<V>(kGELULinear));
    return {z * here, M::mul_add(bounded * bend, e * d * d, here)};
  }

  // For instruction sets without a fused multiply-add.
  template <class V>
  PFC_HD static Answer<V> silu(V given) {
    const V z = at_least(given, -200.0);
    const V e = exp_of<M>(at_least(-z, -700.0));
    const V d = 1.0 / (1.0 + e);
    if constexpr (!kSlope) return {z * d, V{}};
    return {z * d, M::mul_add(z * d, e * d, d)};
  }

  template <class V>
  PFC_HD static Answer<V> sigmoid(V z) {
    const V e = exp_of<M>(-at_most(at_least(z, -200.0), 200.0));
    const V d = 1.0 / (1.0 + e);
    return {d, e * d * d};
  }

  // tanh of a >= 0 is -m / (2 + m) with m = e^(-2 a) - 1.
  template <class V>
  PFC_HD static Answer<V> tanh(V z) {
    const V m = expm1_of<M>(at_least(-2.0 * magnitude(z), -100.0));
    const V d = 1.0 / (2.0 + m);
    const V value = m * d;
    if constexpr (!kSlope) return {z < 0.0 ? value : -value, V{}};
    return {z < 0.0 ? value : -value, 4.0 * (1.0 + m) * d * d};
  }

  template <class V>
  PFC_HD static Answer<V> elu(V z, double alpha) {
    const V m = expm1_of<M>(at_most(at_least(z, -100.0), 0.0));
    const V value = z > 0.0 ? z : alpha * m;
    if constexpr (!kSlope) return {value, V{}};
    return {value, z > 0.0 ? splat<V>(1.0) : exp_of<M>(at_most(at_least(z, -700.0), 0.0)) * alpha};
  }

  template <class V>
  PFC_HD static Answer<V> selu(V z) {
    const Answer<V> inner = elu(z, kSELUAlpha);
    return {kSELUScale * inner.value, kSELUScale * inner.slope};
  }

  // log(1 + e^x) / beta with x = beta z: max(x, 0) + log(1 + e), e = e^-|x|, and log(1 + e) = 2 artanh(e / (2 + e)).
  template <class V>
  PFC_HD static Answer<V> softplus(V z, double beta) {
    const V x = beta * z;
    const V e = exp_of<M>(at_least(-magnitude(x), -700.0));
    const V s = e / (2.0 + e);
    const V w = s * s;
    V p = splat<V>(0x1.dba25f0718ee6p-4);
    p = M::mul_add(p, w, splat<V>(0x1.bc8cf8ddd5876p-4));
    p = M::mul_add(p, w, splat<V>(0x1.24c926a40acd3p-3));
    p = M::mul_add(p, w, splat<V>(0x1.9998d485cf47ep-3));
    p = M::mul_add(p, w, splat<V>(0x1.5555558d7fe22p-2));
    const V log1p = 2.0 * M::mul_add(s * w, p, s);
    const V value = x > kSoftplusThreshold ? z : ((x > 0.0 ? x : V{}) + log1p) / beta;
    if constexpr (!kSlope) return {value, V{}};
    const V sigmoid = (x < 0.0 ? e : splat<V>(1.0)) / (1.0 + e);
    return {value, x > kSoftplusThreshold ? splat<V>(1.0) : sigmoid};
  }
};

}  // namespace pfc::activation
