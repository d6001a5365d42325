// A path as the plan builder sees it: one of core's, or any other function of t (a user's formulas, a table). Only the
// host knows those, and only the plan's coefficients, in float64, carry them to a kernel.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "../core/path.hpp"

namespace pfc::plan {

struct PathFunction {
  virtual ~PathFunction() = default;
  virtual std::string name() const = 0;
  virtual std::pair<double, double> values(double t) const = 0;  // alpha and sigma, t in [0, 1]
  virtual PathPoint at(double t) const = 0;                      // and their derivatives
};

struct HostPath {
  HostPath() = default;
  HostPath(const Path& path) : core(path) {}  // NOLINT(google-explicit-constructor): a core path is a host path
  explicit HostPath(std::shared_ptr<const PathFunction> other) : function(std::move(other)) {}

  Path core;
  std::shared_ptr<const PathFunction> function;  // takes the place of `core` where there is one
};

// Outside [0, 1], NaN.
inline PathPoint evaluate(const HostPath& path, double t) {
  return path.function && t >= 0.0 && t <= 1.0 ? path.function->at(t)
                                               : pfc::evaluate(path.core, path.function ? -1.0 : t);
}

// alpha and sigma alone, which a search along the path asks for many times.
inline std::pair<double, double> values(const HostPath& path, double t) {
  if (path.function && t >= 0.0 && t <= 1.0) return path.function->values(t);
  const PathPoint c = evaluate(path, t);
  return {c.alpha, c.sigma};
}

}  // namespace pfc::plan
