// GELU and SiLU in float32, for operators that only pass over memory, where every operation counts; core/activation.hpp has them
// within 2 ulp, GELU by way of float64.
//
// All are max(z, 0) minus a positive tail, so that where they are negative they are as good as the tail, down to subnormal numbers.
// Measured: in float32 4.6 ulp (GELU), 2.3 (tanh) and 2.3 (SiLU), which needs a fused M::mul_add; for results of half precision,
// fused or not, 0.52 ulp of those. M may have instructions of its own: reciprocal_estimate(d), to 14 bits; scaled(v, n) = v 2^n, rounded once, for
// whole n; larger(a, b) = a > b ? a : b and smaller. NaN stays NaN; f(-inf) is -0 or 0, as its limit.
#pragma once

#include "activation.hpp"

namespace pfc::activation {

// a > b ? a : b, and so b where one is NaN.
template <class M, class V>
PFC_HD V larger(V a, V b) {
  if constexpr (requires { M::larger(a, b); })
    return M::larger(a, b);
  else
    return a > b ? a : b;
}

template <class M, class V>
PFC_HD V smaller(V a, V b) {
  if constexpr (requires { M::smaller(a, b); })
    return M::smaller(a, b);
  else
    return a < b ? a : b;
}

// |z|, at most `most`; a NaN stays one.
template <class M, class V>
PFC_HD V magnitude_to(V z, float most) {
  using I = typename BitsOf<V>::type;
  const V a = exact::bit_cast<V>(exact::bit_cast<I>(z) & INT32_MAX);
  return smaller<M>(splat<V>(most), a);
}

template <class V, class I>
PFC_HD V power_of_two(I exponent) {
  return exact::bit_cast<V>((exponent + 127) << 23);
}

// The whole number nearest to a product, |n| below 2^22: itself, and with kShift32 added, whose low bits are it.
template <class V>
struct WholeNumber {
  V n, shifted;
};

template <class M, class V>
PFC_HD WholeNumber<V> nearest_whole(V x, float factor) {
  const V shifted = M::mul_add(x, splat<V>(factor), splat<V>(kShift32));
  return {shifted - kShift32, shifted};
}

// v 2^n, |n| below 250: without an instruction for it by two powers, neither of them subnormal.
template <class M, class V>
PFC_HD V scaled(V v, const WholeNumber<V>& whole) {
  if constexpr (requires { M::scaled(v, v); }) {
    return M::scaled(v, whole.n);
  } else {
    using I = typename BitsOf<V>::type;
    const I n =
        exact::bit_cast<I>(whole.shifted) - 0x4b400000;  // kShift32's bits, which device code cannot take from it
    const I half = n >> 1;
    return (v * power_of_two<V>(n - half)) * power_of_two<V>(half);
  }
}

inline constexpr float kLog2e = 1.44269504f;

// x - n log 2. ln 2 in two parts: the first has 12 bits, so n times it is exact.
template <class M, class V>
PFC_HD V without_whole(V x, V n) {
  const V r = M::mul_add(n, splat<V>(-0.693115234375f), x);
  return M::mul_add(n, splat<V>(-3.194618329871446e-05f), r);
}

// e^r - 1 for |r| up to log(2) / 2.
template <class M, class V>
PFC_HD V expm1_near_zero(V r) {
  V p = splat<V>(0.001381454f);
  p = M::mul_add(p, r, splat<V>(0.008368745f));
  p = M::mul_add(p, r, splat<V>(0.04166839f));
  p = M::mul_add(p, r, splat<V>(0.16666521f));
  p = M::mul_add(p, r, splat<V>(0.49999994f));
  return M::mul_add(r * r, p, r);
}

// a 2^-32 / (2^-32 + e), e = 2^-32 times an exponential: the scale keeps e finite for as long as anything is left of the quotient.
inline constexpr float kTailScale = 0x1p-32f;

template <class M, class V>
PFC_HD V minus_scaled_quotient(V a, V e, V from) {
  const V d = e + kTailScale;
  const V estimate = nearly_reciprocal<M>(d);
  const V q = a * estimate;
  return M::mul_add(-M::mul_add(M::mul_add(-q, d, a), estimate, q), splat<V>(kTailScale), from);
}

// z Phi(z). With a = |z| the tail is a e^(-a^2 / 2) r P(r - c), r = 1 / (a + 3): the formula of Wide::gelu, its coefficients
// rounded. Beyond 14.6 nothing is left of it.
template <class M, class V>
PFC_HD V gelu32(V z) {
  const V a = magnitude_to<M>(z, 14.6f);
  // The residual is of the sum without its rounding: P is steep in r.
  const V estimate = nearly_reciprocal<M>(a + 3.0f);
  const V residual = M::mul_add(-a, estimate, M::mul_add(splat<V>(-3.0f), estimate, splat<V>(1.0f)));
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
  const V half = -0.5f * a, x = a * half;
  const V low = M::mul_add(a, half, -x);  // what x lost
  const WholeNumber<V> whole = nearest_whole<M>(x, kLog2e);
  const V e = expm1_near_zero<M>(without_whole<M>(x, whole.n) + low);
  const V base = a * (r * p);
  return larger<M>(V{}, z) - scaled<M>(M::mul_add(base, e, base), whole);
}

// z sigmoid(w), w = c1 (z + 0.044715 z^3), c1 = 2 sqrt(2 / pi). The tail is a / (1 + e^w) of a = |z|; w is kept in two parts, since
// e^w has the absolute error of w as its relative one. c1 is cut to 20 bits behind the point, which makes p - c1 exact.
template <class M, class V>
PFC_HD V gelu_tanh32(V z) {
  const V a = magnitude_to<M>(z, 10.9f);
  constexpr float kLinear = 0x1.98845p+0f, kLinearLow = 0x1.9ea1b2p-23f, kCubic = 0x1.2444f2p-4f,
                  kCubicLow = 0x1.49b16ap-29f;
  const V square = a * a;
  const V square_low = M::mul_add(a, a, -square);
  const V p = M::mul_add(square, splat<V>(kCubic), splat<V>(kLinear));
  V low = M::mul_add(square, splat<V>(kCubic), kLinear - p);
  low = low + M::mul_add(square, splat<V>(kCubicLow), splat<V>(kLinearLow));
  low = M::mul_add(square_low, splat<V>(kCubic), low);
  const V w = a * p;
  const V w_low = M::mul_add(a, low, M::mul_add(a, p, -w));
  const WholeNumber<V> whole = nearest_whole<M>(w, kLog2e);
  const V e = expm1_near_zero<M>(without_whole<M>(w, whole.n) + w_low);
  const V scale = splat<V>(kTailScale);
  return minus_scaled_quotient<M>(a, scaled<M>(M::mul_add(scale, e, scale), whole), larger<M>(V{}, z));
}

// z sigmoid(z). Beyond 110 nothing is left of the tail, a / (1 + e^a).
template <class M, class V>
PFC_HD V silu32(V z) {
  const V a = magnitude_to<M>(z, 110.0f);
  const WholeNumber<V> whole = nearest_whole<M>(a, kLog2e);
  const V e = expm1_near_zero<M>(without_whole<M>(a, whole.n));
  const V scale = splat<V>(kTailScale);
  return minus_scaled_quotient<M>(a, scaled<M>(M::mul_add(scale, e, scale), whole), larger<M>(V{}, z));
}

// ------------------------------------------------------------------------------- for results of half precision
// kDigits of the result's mantissa: 8 (bfloat16) or 11 (float16). Tails to 2^-13 or 2^-16, so that what remains is the rounding.

// 2^t times `scale`, a power of two; |t| below 200.
template <class M, int kDigits, class V>
PFC_HD V exp2_roughly(V t, float scale) {
  const WholeNumber<V> whole = nearest_whole<M>(t, 1.0f);
  const V f = t - whole.n;
  V p{};
  if constexpr (kDigits == 8) {
    p = splat<V>(scale * 0x1.c96d5ep-5f);
    p = M::mul_add(p, f, splat<V>(scale * 0x1.f0ecf8p-3f));
    p = M::mul_add(p, f, splat<V>(scale * 0x1.62e2d2p-1f));
    p = M::mul_add(p, f, splat<V>(scale * 0x1.fff61cp-1f));
  } else {
    p = splat<V>(scale * 0x1.3cbf6p-7f);
    p = M::mul_add(p, f, splat<V>(scale * 0x1.ca1ce2p-5f));
    p = M::mul_add(p, f, splat<V>(scale * 0x1.ebfa4cp-3f));
    p = M::mul_add(p, f, splat<V>(scale * 0x1.62e0c2p-1f));
    p = M::mul_add(p, f, splat<V>(scale));
  }
  return scaled<M>(p, whole);
}

// The estimate, for 11 digits with one step.
template <class M, int kDigits, class V>
PFC_HD V reciprocal_roughly(V d) {
  if constexpr (requires { M::reciprocal_estimate(d); }) {
    const V r = M::reciprocal_estimate(d);
    return kDigits == 8 ? r : M::mul_add(M::mul_add(-d, r, splat<V>(1.0f)), r, r);
  } else {
    return 1.0f / d;
  }
}

// max(z, 0) - a / (1 + 2^t).
template <class M, int kDigits, class V>
PFC_HD V logistic_roughly(V z, V a, V t) {
  const V d = exp2_roughly<M, kDigits>(t, kTailScale) + kTailScale;
  return M::mul_add(-(a * reciprocal_roughly<M, kDigits>(d)), splat<V>(kTailScale), larger<M>(V{}, z));
}

template <class M, int kDigits, class V>
PFC_HD V silu_half(V z) {
  const V a = magnitude_to<M>(z, 110.0f);
  return logistic_roughly<M, kDigits>(z, a, a * kLog2e);
}

template <class M, int kDigits, class V>
PFC_HD V gelu_tanh_half(V z) {
  const V a = magnitude_to<M>(z, 10.9f);
  constexpr float kLinear = static_cast<float>(kGELULinear * 1.44269504088896341),
                  kCubic = static_cast<float>(kGELULinear * kGELUCubic * 1.44269504088896341);
  return logistic_roughly<M, kDigits>(z, a, a * M::mul_add(a * a, splat<V>(kCubic), splat<V>(kLinear)));
}

// gelu32 with fewer coefficients.
template <class M, int kDigits, class V>
PFC_HD V gelu_half(V z) {
  const V a = magnitude_to<M>(z, 14.6f);
  const V r = reciprocal_roughly<M, kDigits>(a + 3.0f);
  const V s = r - 0x1.8f83ep-3f;
  V p{};
  if constexpr (kDigits == 8) {
    p = splat<V>(-0x1.29e766p+5f);
    p = M::mul_add(p, s, splat<V>(-0x1.21fcfcp+4f));
    p = M::mul_add(p, s, splat<V>(0x1.07402ap+3f));
    p = M::mul_add(p, s, splat<V>(0x1.21d376p+3f));
    p = M::mul_add(p, s, splat<V>(0x1.c66084p+1f));
    p = M::mul_add(p, s, splat<V>(0x1.a54972p-1f));
  } else {
    p = splat<V>(0x1.2de342p+6f);
    p = M::mul_add(p, s, splat<V>(-0x1.241d48p+5f));
    p = M::mul_add(p, s, splat<V>(-0x1.44ca5p+4f));
    p = M::mul_add(p, s, splat<V>(0x1.06b22cp+3f));
    p = M::mul_add(p, s, splat<V>(0x1.22544ap+3f));
    p = M::mul_add(p, s, splat<V>(0x1.c6633ep+1f));
    p = M::mul_add(p, s, splat<V>(0x1.a54738p-1f));
  }
  const V e = exp2_roughly<M, kDigits>((-0.5f * kLog2e) * a * a, 1.0f);
  return M::mul_add(-(a * e), r * p, larger<M>(V{}, z));
}

}  // namespace pfc::activation
