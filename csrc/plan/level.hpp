// Noise levels along a path: what the solvers that do not step in t need to know of a time.
#pragma once

#include <cmath>
#include <limits>

#include "host_path.hpp"

namespace pfc::plan {

// A time with its path point, lambda = log(alpha / sigma), half the log-SNR, and rho = sigma / alpha. lambda is minus
// infinity where alpha = 0 and infinity where sigma = 0.
struct Level {
  double t, alpha, sigma, lambda, rho;

  bool finite() const { return std::isfinite(lambda); }
};

inline Level level_of(const HostPath& path, double t) {
  const auto [alpha, sigma] = values(path, t);
  const double inf = std::numeric_limits<double>::infinity();
  const double lambda = alpha <= 0.0 ? -inf : sigma <= 0.0 ? inf : std::log(alpha / sigma);
  return {t, alpha, sigma, lambda, alpha <= 0.0 ? inf : sigma / alpha};
}

// The time between lo and hi at which `value(level)` reaches `wanted`; value grows with t. By bisection to the last bit.
template <class Value>
double find_time(const HostPath& path, double lo, double hi, double wanted, Value value) {
  for (int i = 0; i < 200; ++i) {
    const double mid = 0.5 * (lo + hi);
    if (mid <= lo || mid >= hi) break;
    (value(level_of(path, mid)) < wanted ? lo : hi) = mid;
  }
  return hi;
}

inline double time_of_lambda(const HostPath& path, double lo, double hi, double lambda) {
  return find_time(path, lo, hi, lambda, [](const Level& level) { return level.lambda; });
}

}  // namespace pfc::plan
