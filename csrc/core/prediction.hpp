// What a network predicts, and the exact linear maps between predictions. Every prediction is a combination of the data
// x1 and the noise x0, and so is the point x; hence any prediction is p x + q (any other), with p and q from the path.
#pragma once

#include "path.hpp"

namespace pfc {

enum class Prediction : int { kVelocity = 0, kData = 1, kNoise = 2, kScore = 3, kV = 4 };

// A quantity written as data * x1 + noise * x0. The score is the conditional one, -x0 / sigma, whose mean is the score.
struct Mixture {
  double data, noise;
};

PFC_HD Mixture mixture(Prediction kind, const PathPoint& c) {
  switch (kind) {
    case Prediction::kData: return {1.0, 0.0};
    case Prediction::kNoise: return {0.0, 1.0};
    case Prediction::kScore: return {0.0, -1.0 / c.sigma};
    case Prediction::kV: return {-c.sigma, c.alpha};  // Salimans & Ho 2022: v = alpha eps - sigma x
    case Prediction::kVelocity:
    default: return {c.dalpha, c.dsigma};
  }
}

// to = p x + q from. Not finite where `from` does not determine `to`: the plan builder refuses those times by name.
struct Conversion {
  double p, q;
};

// Between any two mixtures: the drift of an SDE is one too, and so is what a preconditioned network says.
PFC_HD Conversion convert(const Mixture& f, const Mixture& to, const PathPoint& c) {
  // Solve p (alpha, sigma) + q (f.data, f.noise) = (to.data, to.noise).
  const double det = c.alpha * f.noise - c.sigma * f.data;
  return {(to.data * f.noise - to.noise * f.data) / det, (c.alpha * to.noise - c.sigma * to.data) / det};
}

PFC_HD Conversion convert(Prediction from, const Mixture& to, const PathPoint& c) {
  return convert(mixture(from, c), to, c);
}

PFC_HD Conversion convert(Prediction from, Prediction to, const PathPoint& c) {
  return from == to ? Conversion{0.0, 1.0} : convert(from, mixture(to, c), c);
}

}  // namespace pfc
