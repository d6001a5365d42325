// The activations of core/network.hpp and their slopes in float64, within 2 ulp, by the C library: one number at a time, since
// float64 is for checks; mostly in long double, where float64 would cancel.
#pragma once

#include "../core/activation.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

PFC_INLINE activation::Answer<double> exact_answer(Activation kind, double parameter, double z) {
  switch (kind) {
    case Activation::kSiLU: {
      if (z < -700.0) {
        const long double power = z < -11000.0 ? 0.0L : __builtin_expl(z), bounded = z < -11000.0 ? -11000.0L : z;
        return {static_cast<double>(bounded * power), static_cast<double>((1.0L + bounded) * power)};
      }
      const double e = __builtin_exp(-z), d = 1.0 + e;
      const double value = z / d;
      return {value, 1.0 / d + value * (e / d)};
    }
    case Activation::kSigmoid: {
      const long double e = __builtin_expl(-static_cast<long double>(z)), d = 1.0L / (1.0L + e);
      return {static_cast<double>(d), static_cast<double>(z < -11000.0 ? 0.0L : e * d * d)};
    }
    case Activation::kGELU: {
      if (z < -40.0) return {-0.0, 0.0};
      const long double wide = z;
      const long double phi = 0.5L * __builtin_erfcl(wide * -0.707106781186547524400844362104849039L);
      const long double density = __builtin_expl(-0.5L * wide * wide) * 0.398942280401432677939946059934381868L;
      return {static_cast<double>(wide * phi), static_cast<double>(phi + (z > 40.0 ? 0.0L : wide * density))};
    }
    case Activation::kGELUTanh: {
      if (z < -100.0) return {-0.0, 0.0};
      const long double wide = z, bounded = z > 100.0 ? 100.0L : wide;
      const long double linear = 1.59576912160573071175978423973752747L, cubic = 0.044715L;
      const long double w = __builtin_expl(-linear * (bounded + cubic * bounded * bounded * bounded));
      const long double here = 1.0L / (1.0L + w), there = w / (1.0L + w);
      const long double bend = linear * (1.0L + 3.0L * cubic * bounded * bounded);
      return {static_cast<double>(wide * here), static_cast<double>(here + bounded * here * there * bend)};
    }
    case Activation::kTanh: {
      const long double value = __builtin_tanhl(z), cosh = __builtin_coshl(z);
      return {static_cast<double>(value), static_cast<double>(1.0L / (cosh * cosh))};
    }
    case Activation::kSELU:
    case Activation::kELU: {
      const bool scaled = kind == Activation::kSELU;
      const long double factor = scaled ? 1.05070098735548049341933498529467L : 1.0L;
      const long double alpha = scaled ? 1.67326324235437728481704297701811L : static_cast<long double>(parameter);
      if (z > 0.0) return {static_cast<double>(factor * z), static_cast<double>(factor)};
      return {static_cast<double>(factor * alpha * __builtin_expm1l(z)),
              static_cast<double>(factor * alpha * __builtin_expl(z))};
    }
    case Activation::kSoftplus: {
      const double x = parameter * z;
      if (x > activation::kSoftplusThreshold) return {z, 1.0};
      const long double wide = static_cast<long double>(parameter) * z;
      const long double power = __builtin_expl(wide);
      return {static_cast<double>(__builtin_log1pl(power) / parameter), static_cast<double>(power / (1.0L + power))};
    }
    default: return {z, 1.0};
  }
}

}  // namespace
}  // namespace pfc::cpu
