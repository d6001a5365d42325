#include "field.hpp"

#include <cmath>

#include "level.hpp"

namespace pfc::plan {

Question ask(const HostPath& trained, const HostPrediction& prediction, const HostPath* along, double r) {
  if (!along) {
    const PathPoint here = evaluate(trained, r);
    return {r, prediction.at(r, here), here};
  }
  PathPoint here = evaluate(*along, r);
  const double lambda = level_of(*along, r).lambda;
  const double first = level_of(trained, 0.0).lambda;
  const double last = level_of(trained, 1.0).lambda;
  const double t = lambda <= first ? 0.0 : lambda >= last ? 1.0 : time_of_lambda(trained, 0.0, 1.0, lambda);
  const PathPoint there = evaluate(trained, t);
  const double scale = std::hypot(there.alpha, there.sigma) / std::hypot(here.alpha, here.sigma);
  Answer answer = prediction.at(t, there);
  answer.in_scale *= scale;
  if (lambda < first || lambda > last) {
    here.alpha = there.alpha / scale;
    here.sigma = there.sigma / scale;
  }
  return {t, answer, here};
}

}  // namespace pfc::plan
