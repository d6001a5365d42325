#include "field.hpp"

#include <cmath>

#include "level.hpp"

namespace pfc::plan {

Question ask(const HostPath& trained, const HostPrediction& prediction, const HostPath* along, double r) {
  if (!along) {
    const PathPoint here = evaluate(trained, r);
    return {r, prediction.at(r, here), here, here};
  }
  const PathPoint here = evaluate(*along, r);
  const double lambda = level_of(*along, r).lambda;
  const double first = level_of(trained, 0.0).lambda;
  const double last = level_of(trained, 1.0).lambda;
  const double t = lambda <= first ? 0.0 : lambda >= last ? 1.0 : time_of_lambda(trained, 0.0, 1.0, lambda);
  const PathPoint there = evaluate(trained, t);
  const double scale = std::hypot(there.alpha, there.sigma) / std::hypot(here.alpha, here.sigma);
  Answer answer = prediction.at(t, there);
  answer.in_scale *= scale;
  PathPoint known = here;
  known.alpha = there.alpha / scale;
  known.sigma = there.sigma / scale;
  if (lambda < first) return {t, answer, here, known};
  if (lambda > last) return {t, answer, known, known};
  // Where sigma rises like a root, no float64 t may name the level: the network then takes the point for the nearest one.
  constexpr double kSameLevel = 1e-10;
  if (std::isfinite(lambda) && std::abs(level_of(trained, t).lambda - lambda) > kSameLevel)
    return {t, answer, here, known};
  return {t, answer, here, here};
}

Conversion Question::to(const Mixture& needed) const {
  const Mixture& says = answer.says;
  const bool known = at.alpha == taken_for.alpha && at.sigma == taken_for.sigma;
  // What the field says already needs nothing of the path, not even where the path is singular.
  if (known && says.data == needed.data && says.noise == needed.noise) return {0.0, 1.0};
  if (known) return convert(says, needed, at);
  const Mixture data{1.0, 0.0};
  const Conversion meant =
      says.data == 1.0 && says.noise == 0.0 ? Conversion{0.0, 1.0} : convert(says, data, taken_for);
  const Conversion rest = convert(data, needed, at);
  return {rest.p + rest.q * meant.p, rest.q * meant.q};
}

}  // namespace pfc::plan
