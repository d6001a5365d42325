// Paths x_t = alpha(t) x1 + sigma(t) x0 on t in [0, 1]: the formulas exist here and nowhere else. Used by the plan
// builder, by the kernels of interpolate, and through _core by Python and the tests.
//
//   linear         alpha = t, sigma = 1 - t                      CondOT (Lipman et al. 2023), rectified flow (Liu et al. 2023)
//   trigonometric  alpha = sin(pi t/2), sigma = cos(pi t/2)      GVP (Albergo & Vanden-Eijnden 2023), the cosine schedule
//   vp             exp(-s^2 (b-a)/4 - s a/2), sqrt(1 - alpha^2)  Song et al. 2021, eq. 29, with diffusion time s = 1 - t
//   polynomial     alpha = t^n, sigma = 1 - t^n
//   linear_vp      alpha = t, sigma = sqrt(1 - t^2)
//   ve             alpha = 1, sigma = sigma_max (1 - t)          Song & Ermon 2019; EDM models (Karras et al. 2022)
#pragma once

#include "exact_math.hpp"

namespace pfc {

enum class PathKind : int { kLinear = 0, kTrigonometric = 1, kVP = 2, kPolynomial = 3, kLinearVP = 4, kVE = 5 };

// kind and its parameters; VP: a = beta_min, b = beta_max; polynomial: a = n; VE: a = sigma_max.
struct Path {
  PathKind kind = PathKind::kLinear;
  double a = 0.0;
  double b = 0.0;
};

struct PathPoint {
  double alpha, sigma, dalpha, dsigma;
};

// log alpha of the VP path at s = 1 - t.
PFC_HD double vp_log_alpha(const Path& path, double s) { return -0.25 * s * s * (path.b - path.a) - 0.5 * s * path.a; }

// Outside [0, 1], NaN.
PFC_HD PathPoint evaluate(const Path& path, double t) {
  if (!(t >= 0.0 && t <= 1.0)) {
    const double nan = exact::bit_cast<double>(static_cast<uint64_t>(0x7ff8000000000000));
    return {nan, nan, nan, nan};
  }
  switch (path.kind) {
    case PathKind::kTrigonometric: {
      const double s = exact::sin_half_pi(t);
      const double c = exact::cos_half_pi(t);
      return {s, c, exact::kHalfPi * c, -exact::kHalfPi * s};
    }
    case PathKind::kVP: {
      const double s = 1.0 - t;
      const double log_alpha = vp_log_alpha(path, s);
      const double alpha = exact::exp(log_alpha);
      const double variance = 0.0 - exact::expm1(2.0 * log_alpha);  // +0 at t = 1, where a minus would give -0
      const double sigma = exact::sqrt(variance);
      const double half_beta = 0.5 * (path.a + s * (path.b - path.a));
      // sigma' = -alpha^2 beta / (2 sigma) has no finite value at t = 1, where sigma = 0: minus infinity, as it is.
      return {alpha, sigma, alpha * half_beta, -alpha * alpha * half_beta / sigma};
    }
    case PathKind::kPolynomial: {
      double power = 1.0;  // t^(n - 1)
      double sum = 1.0;    // 1 + t + ... + t^(n - 1): sigma without cancellation near t = 1
      for (int i = 1; i < static_cast<int>(path.a); ++i) {
        power = power * t;
        sum = sum + power;
      }
      const double slope = path.a * power;
      return {power * t, (1.0 - t) * sum, slope, -slope};
    }
    case PathKind::kLinearVP: {
      const double sigma = exact::sqrt((1.0 - t) * (1.0 + t));
      return {t, sigma, 1.0, -t / sigma};
    }
    case PathKind::kVE: return {1.0, path.a * (1.0 - t), 0.0, -path.a};
    case PathKind::kLinear:
    default: return {t, 1.0 - t, 1.0, -1.0};
  }
}

}  // namespace pfc
