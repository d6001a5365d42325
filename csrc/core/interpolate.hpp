// A point on the path and what the network should say there, for training: x_t = alpha x1 + sigma x0 and the target,
// both linear in (x1, x0). The path is evaluated in float64 from t, once per sample; the elements use S.
#pragma once

#include "prediction.hpp"

namespace pfc {

template <class S>
struct InterpolateCoefficients {
  S alpha, sigma, data, noise;  // x_t = alpha x1 + sigma x0, target = data x1 + noise x0
};

template <class S>
PFC_HD InterpolateCoefficients<S> interpolate_coefficients(const Path& path, Prediction prediction, double t) {
  const PathPoint c = evaluate(path, t);
  const Mixture m = mixture(prediction, c);
  return {static_cast<S>(c.alpha), static_cast<S>(c.sigma), static_cast<S>(m.data), static_cast<S>(m.noise)};
}

template <class V, class S>
PFC_HD void interpolate_element(const InterpolateCoefficients<S>& c, V data, V noise, V& point, V& target) {
  point = c.alpha * data + c.sigma * noise;
  target = c.data * data + c.noise * noise;
}

}  // namespace pfc
