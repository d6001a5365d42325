// core/activation.hpp on native vectors of an instruction set, and over rows of memory.
#pragma once

#include <type_traits>

#include "exact_activation.hpp"

namespace pfc::cpu {
namespace {

template <class S>
using Native = typename Wide<S>::Native;

// Multiply-add of vectors and of single numbers: fused where the instruction set has it (core/network.hpp).
struct Math {
  template <class V>
  static PFC_INLINE V mul_add(V a, V b, V c) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<V, Native<float>>) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    if constexpr (std::is_same_v<V, Native<double>>) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
    if constexpr (std::is_same_v<V, Native<float>>) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    if constexpr (std::is_same_v<V, Native<double>>) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
#if defined(__FMA__)
    if constexpr (std::is_same_v<V, float>) return __builtin_fmaf(a, b, c);
    if constexpr (std::is_same_v<V, double>) return __builtin_fma(a, b, c);
#endif
    return a * b + c;
  }

  // core/gelu.hpp. 14 bits of the reciprocal.
#if defined(__AVX512F__)
  static PFC_INLINE Native<float> reciprocal_estimate(Native<float> d) {
    return (Native<float>)_mm512_rcp14_ps((__m512)d);
  }
  static PFC_INLINE Native<float> scaled(Native<float> v, Native<float> n) {
    return (Native<float>)_mm512_scalef_ps((__m512)v, (__m512)n);
  }
  static PFC_INLINE Native<float> larger(Native<float> a, Native<float> b) {
    return (Native<float>)_mm512_max_ps((__m512)a, (__m512)b);
  }
  static PFC_INLINE Native<float> smaller(Native<float> a, Native<float> b) {
    return (Native<float>)_mm512_min_ps((__m512)a, (__m512)b);
  }
#elif defined(__AVX2__)
  static PFC_INLINE Native<float> larger(Native<float> a, Native<float> b) {
    return (Native<float>)_mm256_max_ps((__m256)a, (__m256)b);
  }
  static PFC_INLINE Native<float> smaller(Native<float> a, Native<float> b) {
    return (Native<float>)_mm256_min_ps((__m256)a, (__m256)b);
  }
#endif
};

#if defined(__FMA__)
inline constexpr bool kFused = true;
#else
inline constexpr bool kFused = false;
#endif

// A function of float64 on a vector of float32: in two halves, since a native vector of float64 has half the lanes.
template <class F>
PFC_INLINE activation::Answer<Native<float>> by_halves(const F& f, const Native<float>& z) {
  constexpr int kHalf = Wide<float>::kLanes / 2;
  using Half = typename NativeOf<float, kHalf>::type;
  Half part[2];
  __builtin_memcpy(&part, &z, sizeof(z));
  Half value[2], slope[2];
  for (int i = 0; i < 2; ++i) {
    const auto answer = f(__builtin_convertvector(part[i], Native<double>));
    value[i] = __builtin_convertvector(answer.value, Half);
    slope[i] = __builtin_convertvector(answer.slope, Half);
  }
  return {load_bytes<Native<float>>(&value), load_bytes<Native<float>>(&slope)};
}

// Calls use(f) with f(z) -> Answer for a native vector z of S: one decision for whatever loop `use` runs.
template <class S, bool kSlope, class Use>
PFC_INLINE void with_activation(Activation kind, double parameter, const Use& use) {
  using V = Native<S>;
  using activation::Answer;
  using activation::splat;
  const V one = splat<V>(S(1));
  switch (kind) {
    case Activation::kIdentity: return use([&](V z) { return Answer<V>{z, one}; });
    case Activation::kReLU: return use([&](V z) { return Answer<V>{z < S(0) ? V{} : z, z > S(0) ? one : V{}}; });
    case Activation::kLeakyReLU: {
      const S slope = static_cast<S>(parameter);
      return use([&](V z) { return Answer<V>{z > S(0) ? z : slope * z, z > S(0) ? one : splat<V>(slope)}; });
    }
    default: break;
  }
  if constexpr (sizeof(S) == 8) {
    use([&](V z) {
      Answer<V> answer{};
      for (int i = 0; i < Wide<S>::kLanes; ++i) {
        const Answer<double> here = exact_answer(kind, parameter, z[i]);
        answer.value[i] = here.value;
        answer.slope[i] = here.slope;
      }
      return answer;
    });
  } else {
    using W = activation::Wide<Math, kSlope>;
    switch (kind) {
      case Activation::kSiLU:
        if constexpr (kFused) return use([](V z) { return activation::silu<Math, kSlope>(z); });
        return use([](V z) { return by_halves([](auto w) { return W::silu(w); }, z); });
      case Activation::kSigmoid:
        if constexpr (kFused) return use([](V z) { return activation::sigmoid<Math, kSlope>(z); });
        return use([](V z) { return by_halves([](auto w) { return W::sigmoid(w); }, z); });
      case Activation::kGELU: return use([](V z) { return by_halves([](auto w) { return W::gelu(w); }, z); });
      case Activation::kGELUTanh: return use([](V z) { return by_halves([](auto w) { return W::gelu_tanh(w); }, z); });
      case Activation::kSELU: return use([](V z) { return by_halves([](auto w) { return W::selu(w); }, z); });
      case Activation::kTanh: return use([](V z) { return by_halves([](auto w) { return W::tanh(w); }, z); });
      case Activation::kSoftplus:
        return use([&](V z) { return by_halves([&](auto w) { return W::softplus(w, parameter); }, z); });
      default: return use([&](V z) { return by_halves([&](auto w) { return W::elu(w, parameter); }, z); });
    }
  }
}

// z <- f(z) for `rows` rows of `count` elements, whole vectors, `stride` elements apart.
template <class S>
inline void activate_rows(Activation kind, double parameter, S* z, int64_t rows, int64_t count, int64_t stride) {
  constexpr int kLanes = Wide<S>::kLanes;
  with_activation<S, false>(kind, parameter, [&](const auto& f) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < count; j += kLanes) {
        S* at = z + i * stride + j;
        store_bytes(at, f(load_bytes<Native<S>>(at)).value, false);
      }
  });
}

// The same, with the slopes beside it: slope <- f'(z).
template <class S>
inline void activate_rows_with_slope(Activation kind, double parameter, S* z, S* slope, int64_t rows, int64_t count,
                                     int64_t stride) {
  constexpr int kLanes = Wide<S>::kLanes;
  with_activation<S, true>(kind, parameter, [&](const auto& f) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < count; j += kLanes) {
        S* at = z + i * stride + j;
        const auto answer = f(load_bytes<Native<S>>(at));
        store_bytes(at, answer.value, false);
        store_bytes(slope + i * stride + j, answer.slope, false);
      }
  });
}

}  // namespace
}  // namespace pfc::cpu
