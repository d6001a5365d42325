// What a field says, and how it is asked: the conventions of a trained network as the plan builder needs them.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "../core/prediction.hpp"
#include "host_path.hpp"

namespace pfc::plan {

// A field's output as a mixture of data and noise, and the factor that its input, a point of its path, is multiplied with.
struct Answer {
  Mixture says;
  double in_scale = 1.0;
};

// A preconditioned network or one with a scaled input: what it says depends on more than the five names.
struct FieldFunction {
  virtual ~FieldFunction() = default;
  virtual std::string name() const = 0;
  virtual Answer at(double t, const PathPoint& c) const = 0;
};

struct HostPrediction {
  HostPrediction() = default;
  HostPrediction(Prediction name) : kind(name) {}  // NOLINT(google-explicit-constructor): a prediction is one here too
  explicit HostPrediction(std::shared_ptr<const FieldFunction> other) : function(std::move(other)) {}

  Prediction kind = Prediction::kVelocity;
  std::shared_ptr<const FieldFunction> function;  // takes the place of `kind` where there is one

  Answer at(double t, const PathPoint& c) const {
    return function ? function->at(t, c) : Answer{mixture(kind, c), 1.0};
  }
  // Whether the field predicts exactly this.
  friend bool operator==(const HostPrediction& given, Prediction kind) { return !given.function && given.kind == kind; }
};

// An evaluation at a plan time: the field's own time, its answer, the plan's point, and what the field takes that point for.
struct Question {
  double t;
  Answer answer;
  PathPoint at;
  PathPoint taken_for;

  // From the field's output to a mixture at the plan's point; not finite where it does not determine it.
  Conversion to(const Mixture& needed) const;
};

// The field's time of a plan whose path is `along` while the field was trained on `trained`: the one of equal lambda, where
// x_trained = s x with s = sqrt(alpha^2 + sigma^2) of the trained path by that of the other. s is alpha / alpha~ and
// sigma / sigma~ wherever those are finite, and is finite at both ends. A level that the trained path does not reach is its
// nearest end, and one that no float64 time names is that of the nearest time: the network takes the point for one of that level. The data that it then means is what the plan goes by at a
// level above the path's highest noise; past its lowest the conversion takes the point for what the network does.
Question ask(const HostPath& trained, const HostPrediction& prediction, const HostPath* along, double r);

}  // namespace pfc::plan
