#include "grids.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

namespace pfc::plan {

std::vector<double> uniform_grid(int steps) {
  if (steps < 1) throw std::invalid_argument("steps must be a positive integer, got " + std::to_string(steps));
  std::vector<double> times;
  for (int i = 0; i <= steps; ++i) times.push_back(static_cast<double>(i) / steps);
  return times;
}

std::vector<double> shift_grid(const std::vector<double>& times, double shift) {
  if (!(std::isfinite(shift) && shift > 0.0))
    throw std::invalid_argument("shift must be a positive finite number, got " + std::to_string(shift));
  std::vector<double> shifted;
  // In t: t / (t + s (1 - t)), exact at both ends.
  for (double t : times) shifted.push_back(t / (t + shift * (1.0 - t)));
  return shifted;
}

}  // namespace pfc::plan
