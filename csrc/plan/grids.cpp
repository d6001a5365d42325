#include "grids.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "level.hpp"

namespace pfc::plan {

namespace {

void check_steps(int steps) {
  if (steps < 1) throw std::invalid_argument("steps must be a positive integer, got " + std::to_string(steps));
}

void check_positive(const char* name, double value) {
  if (!(std::isfinite(value) && value > 0.0))
    throw std::invalid_argument(std::string(name) + " must be a positive finite number, got " + std::to_string(value));
}

void check_levels(double least, double most, double limit) {
  check_positive("sigma_min", least);
  if (!(std::isfinite(most) && most > least && most <= limit))
    throw std::invalid_argument("sigma_max must be above sigma_min = " + std::to_string(least) + " and at most " +
                                std::to_string(limit) + ", got " + std::to_string(most));
}

// Where an increasing function reaches `wanted` in [lo, hi], by bisection to the last bit.
template <class Function>
double solve(double lo, double hi, double wanted, Function function) {
  while (true) {
    const double mid = 0.5 * (lo + hi);
    if (mid <= lo || mid >= hi) return hi;
    (function(mid) < wanted ? lo : hi) = mid;
  }
}

std::vector<double> levels_to_times(const std::vector<double>& levels) {
  std::vector<double> times;
  for (double level : levels) times.push_back(1.0 - level);
  times.push_back(1.0);
  return times;
}

std::vector<double> karras_levels(int steps, double rho, double least, double most) {
  check_steps(steps);
  check_positive("rho", rho);
  std::vector<double> levels{most};
  const double from = std::pow(most, 1.0 / rho);
  const double to = std::pow(least, 1.0 / rho);
  for (int i = 1; i < steps; ++i)
    levels.push_back(i + 1 == steps ? least : std::pow(from + (to - from) * i / (steps - 1), rho));
  return levels;
}

// The continued fraction of the incomplete beta function I_x(a, b) (DLMF 8.17.22), by Lentz's method; fast for
// x < (a + 1) / (a + b + 2).
double beta_fraction(double a, double b, double x) {
  const double tiny = 1e-300;
  double d = 1.0 - (a + b) * x / (a + 1.0);
  double c = 1.0;
  d = 1.0 / (std::fabs(d) < tiny ? tiny : d);
  double value = d;
  for (int m = 1; m < 1000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0));
    for (const double term : {even, odd}) {
      d = 1.0 + term * d;
      c = 1.0 + term / c;
      d = 1.0 / (std::fabs(d) < tiny ? tiny : d);
      c = std::fabs(c) < tiny ? tiny : c;
      value *= c * d;
    }
    if (std::fabs(c * d - 1.0) < 1e-16) break;
  }
  return value;
}

double beta_distribution(double a, double b, double x) {
  if (x <= 0.0) return 0.0;
  if (x >= 1.0) return 1.0;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1.0) / (a + b + 2.0)) return front * beta_fraction(a, b, x) / a;
  return 1.0 - front * beta_fraction(b, a, 1.0 - x) / b;
}

}  // namespace

std::vector<double> uniform_grid(int steps) {
  check_steps(steps);
  std::vector<double> times;
  for (int i = 0; i <= steps; ++i) times.push_back(static_cast<double>(i) / steps);
  return times;
}

std::vector<double> shift_grid(const std::vector<double>& times, double shift) {
  check_positive("shift", shift);
  std::vector<double> shifted;
  // In t: t / (t + s (1 - t)), exact at both ends.
  for (double t : times) shifted.push_back(t / (t + shift * (1.0 - t)));
  return shifted;
}

std::vector<double> terminal_grid(const std::vector<double>& times, double level) {
  if (!(level > 0.0 && level < 1.0))
    throw std::invalid_argument("terminal must lie inside (0, 1), got " + std::to_string(level));
  if (times.size() < 3)
    throw std::invalid_argument("terminal needs at least 2 steps, got " + std::to_string(times.size() - 1));
  if (times.back() != 1.0)
    throw std::invalid_argument("terminal needs a grid that ends at t = 1, got " + std::to_string(times.back()));
  const std::size_t last = times.size() - 2;
  std::vector<double> stretched;
  for (std::size_t i = 0; i < last; ++i) stretched.push_back(times[i] * (1.0 - level) / times[last]);
  stretched.push_back(1.0 - level);
  stretched.push_back(1.0);
  return stretched;
}

std::vector<double> karras_grid(int steps, double rho, double least, double most) {
  check_levels(least, most, 1.0);
  return levels_to_times(karras_levels(steps, rho, least, most));
}

std::vector<double> exponential_grid(int steps, double least, double most) {
  check_steps(steps);
  check_levels(least, most, 1.0);
  std::vector<double> levels{most};
  for (int i = 1; i < steps; ++i)
    levels.push_back(i + 1 == steps ? least : most * std::pow(least / most, static_cast<double>(i) / (steps - 1)));
  return levels_to_times(levels);
}

std::vector<double> karras_rho_grid(const HostPath& path, int steps, double rho, double least, double most) {
  check_levels(least, most, std::numeric_limits<double>::max());
  std::vector<double> times;
  const double highest = level_of(path, 0.0).rho;
  if (least >= highest)
    throw std::invalid_argument("sigma_min is " + std::to_string(least) + ", the path's highest sigma / alpha is " +
                                std::to_string(highest));
  const double lowest = level_of(path, 1.0).rho;
  if (least <= lowest)
    throw std::invalid_argument("sigma_min is " + std::to_string(least) + ", the path's lowest sigma / alpha is " +
                                std::to_string(lowest));
  for (double level : karras_levels(steps, rho, least, std::min(most, highest)))
    times.push_back(level >= highest ? 0.0
                                     : find_time(path, 0.0, 1.0, -level, [](const Level& at) { return -at.rho; }));
  times.push_back(1.0);
  return times;
}

std::vector<double> beta_grid(int steps, double a, double b) {
  check_steps(steps);
  check_positive("a", a);
  check_positive("b", b);
  std::vector<double> times;
  for (int i = 0; i <= steps; ++i) {
    const double q = static_cast<double>(i) / steps;
    // From the nearer end, where a quantile keeps its digits.
    times.push_back(q <= 0.5 ? solve(0.0, 1.0, q, [&](double x) { return beta_distribution(a, b, x); })
                             : 1.0 - solve(0.0, 1.0, static_cast<double>(steps - i) / steps,
                                           [&](double x) { return beta_distribution(b, a, x); }));
  }
  times.front() = 0.0;
  times.back() = 1.0;
  return times;
}

std::vector<double> logit_normal_grid(int steps, double mean, double scale) {
  check_steps(steps);
  if (!std::isfinite(mean)) throw std::invalid_argument("mean must be finite, got " + std::to_string(mean));
  check_positive("std", scale);
  std::vector<double> times{0.0};
  for (int i = 1; i < steps; ++i) {
    const double q = static_cast<double>(i) / steps;
    const auto below = [](double z) { return 0.5 * std::erfc(-z * std::sqrt(0.5)); };
    const double z =
        q <= 0.5 ? solve(-40.0, 0.0, q, below) : -solve(-40.0, 0.0, static_cast<double>(steps - i) / steps, below);
    times.push_back(1.0 / (1.0 + std::exp(-(mean + scale * z))));
  }
  times.push_back(1.0);
  return times;
}

std::vector<double> linear_quadratic_grid(int steps, double threshold, int linear_steps) {
  check_steps(steps);
  if (!(threshold > 0.0 && threshold < 1.0))
    throw std::invalid_argument("threshold must lie inside (0, 1), got " + std::to_string(threshold));
  if (linear_steps < 0 || linear_steps > steps - (steps > 1))
    throw std::invalid_argument("linear_steps is " + std::to_string(linear_steps) +
                                ", allowed are 0 (half of the steps) to " + std::to_string(steps - 1));
  const double n = steps;
  const double m = linear_steps == 0 ? steps / 2 : linear_steps;
  if (m == 0.0) return {0.0, 1.0};
  // threshold + slope (i - m) + bend (i - m)^2 for i > m, and 1 at i = n.
  const double slope = threshold / m;
  const double rest = n - m;
  const double bend = (1.0 - threshold - slope * rest) / (rest * rest);
  std::vector<double> times;
  for (int i = 0; i < steps; ++i)
    times.push_back(i <= m ? slope * i : threshold + slope * (i - m) + bend * (i - m) * (i - m));
  times.push_back(1.0);
  return times;
}

std::vector<double> cosine_grid(int steps) {
  check_steps(steps);
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) {
    const double s = exact::sin_half_pi(0.5 * i / steps);
    times.push_back(2.0 * s * s);  // 1 - cos without its cancellation
  }
  times.push_back(1.0);
  return times;
}

std::vector<double> lambda_grid(const HostPath& path, int steps, double lo, double hi, bool whole) {
  check_steps(steps);
  if (!(std::isfinite(lo) && std::isfinite(hi) && lo < hi))
    throw std::invalid_argument("lo and hi must be finite and rise, got " + std::to_string(lo) + " and " +
                                std::to_string(hi));
  const double first = level_of(path, 0.0).lambda;
  if (lo <= first)
    throw std::invalid_argument("lo is " + std::to_string(lo) +
                                ", the path begins at lambda = " + std::to_string(first));
  const double last = level_of(path, 1.0).lambda;
  if (hi >= last)
    throw std::invalid_argument("hi is " + std::to_string(hi) + ", the path ends at lambda = " + std::to_string(last));
  const int inside = whole ? steps - 1 : steps + 1;
  std::vector<double> times;
  if (whole) times.push_back(0.0);
  for (int i = 0; i < inside; ++i)
    times.push_back(time_of_lambda(path, 0.0, 1.0, inside == 1 ? 0.5 * (lo + hi) : lo + (hi - lo) * i / (inside - 1)));
  if (whole) times.push_back(1.0);
  return times;
}

}  // namespace pfc::plan
