// Activations of a pack: core/activation.hpp for exact float32, the mathematical library for float64, which is within a few
// ulp there, and in the tensor cores' precisions, whose operands have 8 or 11 bits, the GPU's own approximations.
#pragma once

#include <cmath>

#include "../core/activation.hpp"
#include "pack.hpp"

namespace pfc::cuda {

struct DeviceMath {
  static PFC_HD float mul_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
  }
  static PFC_HD double mul_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
    return __fma_rn(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
  }
  // A place to begin a quotient from, which the residuals then mend.
  static PFC_HD float reciprocal_estimate(float d) {
#if defined(__CUDA_ARCH__)
    float estimate;
    asm("rcp.approx.f32 %0, %1;" : "=f"(estimate) : "f"(d));
    return estimate;
#else
    return 1.0f / d;
#endif
  }
};

struct ExactActivation {
  // The float32 functions that core/ computes in float64.
  static PFC_HD float one(Activation kind, float parameter, float z) {
    using Wide = activation::Wide<DeviceMath, false>;
    const double wide = z, beta = parameter;
    switch (kind) {
      case Activation::kReLU: return z < 0.0f ? 0.0f : z;
      case Activation::kLeakyReLU: return z > 0.0f ? z : parameter * z;
      case Activation::kSiLU: return activation::silu<DeviceMath, false>(z).value;
      case Activation::kSigmoid: return activation::sigmoid<DeviceMath, false>(z).value;
      case Activation::kGELU: return static_cast<float>(Wide::gelu(wide).value);
      case Activation::kGELUTanh: return static_cast<float>(Wide::gelu_tanh(wide).value);
      case Activation::kTanh: return static_cast<float>(Wide::tanh(wide).value);
      case Activation::kELU: return static_cast<float>(Wide::elu(wide, beta).value);
      case Activation::kSELU: return static_cast<float>(Wide::selu(wide).value);
      case Activation::kSoftplus: return static_cast<float>(Wide::softplus(wide, beta).value);
      default: return z;
    }
  }

  static PFC_HD double one(Activation kind, double parameter, double z) {
    switch (kind) {
      case Activation::kReLU: return z < 0.0 ? 0.0 : z;
      case Activation::kLeakyReLU: return z > 0.0 ? z : parameter * z;
      case Activation::kSiLU: return z * logistic(z);
      case Activation::kSigmoid: return logistic(z);
      case Activation::kGELU: return z < -40.0 ? -0.0 : 0.5 * z * ::erfc(z * -0.70710678118654752440);
      case Activation::kGELUTanh: {
        const double w = z * (activation::kGELULinear + activation::kGELULinear * activation::kGELUCubic * (z * z));
        return z * logistic(w);
      }
      case Activation::kTanh: return ::tanh(z);
      case Activation::kELU: return z > 0.0 ? z : parameter * ::expm1(z);
      case Activation::kSELU: return activation::kSELUScale * (z > 0.0 ? z : activation::kSELUAlpha * ::expm1(z));
      case Activation::kSoftplus: {
        const double x = parameter * z;
        return x > activation::kSoftplusThreshold ? z : ::log1p(::exp(x)) / parameter;
      }
      default: return z;
    }
  }
  static PFC_HD double logistic(double z) {
    const double e = ::exp(-::fabs(z));
    return (z < 0.0 ? e : 1.0) / (1.0 + e);
  }
};

struct FastActivation {
  static PFC_HD float exp(float z) {
#if defined(__CUDA_ARCH__)
    return __expf(z);
#else
    return ::expf(z);
#endif
  }
  static PFC_HD float logistic(float z) {
#if defined(__CUDA_ARCH__)
    // Below -88 the quotient of the approximate division is 0, as the limit is.
    return __fdividef(1.0f, 1.0f + exp(-(z > -80.0f ? z : -80.0f)));
#else
    return 1.0f / (1.0f + exp(-(z > -80.0f ? z : -80.0f)));
#endif
  }
  // exp(z) - 1 for z <= 0: near 0 by its series, where the difference would cancel.
  static PFC_HD float expm1(float z) {
    const float series = z * (1.0f + z * (0.5f + z * (0.16666667f + z * (0.041666668f + z * 0.0083333338f))));
    return z > -0.25f ? series : exp(z) - 1.0f;
  }
  static PFC_HD float one(Activation kind, float parameter, float z) {
    switch (kind) {
      case Activation::kReLU: return z < 0.0f ? 0.0f : z;
      case Activation::kLeakyReLU: return z > 0.0f ? z : parameter * z;
      case Activation::kSiLU: return z * logistic(z);
      case Activation::kSigmoid: return logistic(z);
      case Activation::kGELU: return 0.5f * z * ::erfcf(z * -0.70710678f);
      case Activation::kGELUTanh: return z * logistic(z * (1.5957691f + 0.071354816f * (z * z)));
      case Activation::kTanh: {
        const float m = expm1(-2.0f * ::fabsf(z));
        const float value = m / (2.0f + m);
        return z < 0.0f ? value : -value;
      }
      case Activation::kELU: return z > 0.0f ? z : parameter * expm1(z);
      case Activation::kSELU: return 1.0507010f * (z > 0.0f ? z : 1.6732632f * expm1(z));
      case Activation::kSoftplus: {
        const float x = parameter * z;
        return x > 20.0f ? z : ::log1pf(exp(x)) / parameter;
      }
      default: return z;
    }
  }
};

template <class Kind, class S, int N>
PFC_HD Pack<S, N> activate(Activation kind, S parameter, Pack<S, N> z) {
  PFC_FULL_UNROLL
  for (int e = 0; e < N; ++e) z.v[e] = Kind::one(kind, parameter, z.v[e]);
  return z;
}

}  // namespace pfc::cuda
