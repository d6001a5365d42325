// GELU in float32, for operators that only pass over memory; core/activation.hpp has it by way of float64, within 2 ulp.
//
// Both forms are max(z, 0) minus a positive tail that is computed to 4.5 ulp of itself (measured; tanh 1.4), so that the result is as well, down to
// subnormal numbers. M::mul_add must be fused: residuals are taken by it. gelu(-inf) is -0, as its limit.
#pragma once

#include "activation.hpp"

namespace pfc::activation {

// |z|, at most `most`; a NaN stays one.
template <class V>
PFC_HD V magnitude_to(V z, float most) {
  using I = typename BitsOf<V>::type;
  const V a = exact::bit_cast<V>(exact::bit_cast<I>(z) & INT32_MAX);
  return a > most ? splat<V>(most) : a;
}

// e^(x + low) = (1 + expm1) 2^whole, for |x| below 200 or so and a low part below an ulp of it. The reduction is `logistic`'s.
template <class V>
struct Exponential {
  V expm1;
  typename BitsOf<V>::type whole;
};

template <class M, class V>
PFC_HD Exponential<V> exponential(V x, V low) {
  using I = typename BitsOf<V>::type;
  const V shifted = M::mul_add(x, splat<V>(1.44269504f), splat<V>(kShift32));
  const V n = shifted - kShift32;
  V r = M::mul_add(n, splat<V>(-0.693115234375f), x);
  r = M::mul_add(n, splat<V>(-3.194618329871446e-05f), r) + low;
  V p = splat<V>(0.001381454f);
  p = M::mul_add(p, r, splat<V>(0.008368745f));
  p = M::mul_add(p, r, splat<V>(0.04166839f));
  p = M::mul_add(p, r, splat<V>(0.16666521f));
  p = M::mul_add(p, r, splat<V>(0.49999994f));
  return {M::mul_add(r * r, p, r), exact::bit_cast<I>(shifted) - 0x4b400000};
}

template <class V, class I>
PFC_HD V power_of_two(I exponent) {
  return exact::bit_cast<V>((exponent + 127) << 23);
}

// z Phi(z). With a = |z| the tail is a e^(-a^2 / 2) r P(r - c), r = 1 / (a + 3): the formula of Wide::gelu, its coefficients
// rounded. Beyond 14.6 nothing is left of it.
template <class M, class V>
PFC_HD V gelu32(V z) {
  const V a = magnitude_to(z, 14.6f);
  // Of the sum as it would be without rounding, what it lost being known: P is steep in r.
  const V d = a + 3.0f, lost = a - (d - 3.0f);
  const V estimate = nearly_reciprocal<M>(d);
  const V residual = M::mul_add(-lost, estimate, M::mul_add(-d, estimate, splat<V>(1.0f)));
  const V r = M::mul_add(residual, estimate, estimate);
  const V s = r - 0x1.8f83ep-3f;
  V p = splat<V>(0x1.a2a076p+11f);
  p = M::mul_add(p, s, splat<V>(-0x1.86a74ep+8f));
  p = M::mul_add(p, s, splat<V>(-0x1.3c2dep+9f));
  p = M::mul_add(p, s, splat<V>(0x1.4cc2p+7f));
  p = M::mul_add(p, s, splat<V>(0x1.77cb38p+6f));
  p = M::mul_add(p, s, splat<V>(-0x1.4e2428p+5f));
  p = M::mul_add(p, s, splat<V>(-0x1.477e3ap+4f));
  p = M::mul_add(p, s, splat<V>(0x1.084624p+3f));
  p = M::mul_add(p, s, splat<V>(0x1.22578cp+3f));
  p = M::mul_add(p, s, splat<V>(0x1.c65f68p+1f));
  p = M::mul_add(p, s, splat<V>(0x1.a54738p-1f));
  const V square = a * a;
  const V low = M::mul_add(a, a, -square);  // what square lost
  const Exponential<V> e = exponential<M>(-0.5f * square, -0.5f * low);
  const auto half = e.whole >> 1;  // two powers of two, neither subnormal
  const V base = a * (r * p);
  const V tail = M::mul_add(base, e.expm1, base) * power_of_two<V>(e.whole - half);
  return M::mul_add(-tail, power_of_two<V>(half), z < 0.0f ? V{} : z);
}

// z sigmoid(w), w = c1 (z + 0.044715 z^3), c1 = 2 sqrt(2 / pi). The tail is a / (1 + e^w) of a = |z|; w is kept in two parts, since
// e^w has the absolute error of w as its relative one. c1 is cut to 20 bits behind the point, which makes p - c1 exact.
template <class M, class V>
PFC_HD V gelu_tanh32(V z) {
  const V a = magnitude_to(z, 12.0f);
  constexpr float kLinear = 0x1.98845p+0f, kLinearLow = 0x1.9ea1b2p-23f, kCubic = 0x1.2444f2p-4f,
                  kCubicLow = 0x1.49b16ap-29f;
  const V square = a * a;
  const V square_low = M::mul_add(a, a, -square);
  const V p = M::mul_add(square, splat<V>(kCubic), splat<V>(kLinear));
  V low = M::mul_add(square, splat<V>(kCubic), -(p - kLinear));
  low = M::mul_add(square, splat<V>(kCubicLow), low);
  low = M::mul_add(square_low, splat<V>(kCubic), low) + kLinearLow;
  const V w = a * p;
  const V w_low = M::mul_add(a, low, M::mul_add(a, p, -w));
  // 1 + e^w as in `logistic`, which has no low part of w.
  const Exponential<V> e = exponential<M>(w, w_low);
  const auto half = e.whole >> 1;
  const V power = power_of_two<V>(e.whole - half), inverse = power_of_two<V>(-half);
  const V rest = M::mul_add(e.expm1, power, inverse);
  const V d = power + rest;
  const Logistic32<V> sum{d, (power - d) + rest, inverse};
  return M::mul_add(-quotient<M>(a, sum), inverse, z < 0.0f ? V{} : z);
}

}  // namespace pfc::activation
