// Paths and predictions that Python defines: the casters between its objects and what the plan builder takes. An object with
// `_values(t)` and `_point(t)` is a path, one with `_answer(t, alpha, sigma, dalpha, dsigma)` a prediction; a plan hands the same
// object back.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../plan/field.hpp"

namespace pfc::python {

namespace py = pybind11;

class PythonPath final : public plan::PathFunction {
 public:
  explicit PythonPath(py::object object) : object_(std::move(object)) {}

  std::string name() const override { return py::cast<std::string>(object_.attr("name")); }
  std::pair<double, double> values(double t) const override {
    return py::cast<std::pair<double, double>>(object_.attr("_values")(t));
  }
  PathPoint at(double t) const override {
    const auto [alpha, sigma, dalpha, dsigma] =
        py::cast<std::tuple<double, double, double, double>>(object_.attr("_point")(t));
    return {alpha, sigma, dalpha, dsigma};
  }
  const py::object& object() const { return object_; }

 private:
  py::object object_;
};

class PythonPrediction final : public plan::FieldFunction {
 public:
  explicit PythonPrediction(py::object object) : object_(std::move(object)) {}

  std::string name() const override { return py::cast<std::string>(object_.attr("name")); }
  plan::Answer at(double t, const PathPoint& c) const override {
    const auto [data, noise, in_scale] =
        py::cast<std::tuple<double, double, double>>(object_.attr("_answer")(t, c.alpha, c.sigma, c.dalpha, c.dsigma));
    return {{data, noise}, in_scale};
  }
  const py::object& object() const { return object_; }

 private:
  py::object object_;
};

}  // namespace pfc::python

namespace pybind11::detail {

template <>
struct type_caster<pfc::plan::HostPath> {
  PYBIND11_TYPE_CASTER(pfc::plan::HostPath, const_name("Path"));

  bool load(handle source, bool) {
    if (isinstance<pfc::Path>(source)) {
      value = source.cast<pfc::Path>();
      return true;
    }
    if (!hasattr(source, "_values") || !hasattr(source, "_point")) return false;
    value = pfc::plan::HostPath(std::make_shared<pfc::python::PythonPath>(reinterpret_borrow<object>(source)));
    return true;
  }

  static handle cast(const pfc::plan::HostPath& path, return_value_policy, handle) {
    if (!path.function) return pybind11::cast(path.core).release();
    return object(static_cast<const pfc::python::PythonPath&>(*path.function).object()).release();
  }
};

template <>
struct type_caster<pfc::plan::HostPrediction> {
  PYBIND11_TYPE_CASTER(pfc::plan::HostPrediction, const_name("Prediction"));

  bool load(handle source, bool) {
    if (isinstance<pfc::Prediction>(source)) {
      value = source.cast<pfc::Prediction>();
      return true;
    }
    if (!hasattr(source, "_answer")) return false;
    value =
        pfc::plan::HostPrediction(std::make_shared<pfc::python::PythonPrediction>(reinterpret_borrow<object>(source)));
    return true;
  }

  static handle cast(const pfc::plan::HostPrediction& prediction, return_value_policy, handle) {
    if (!prediction.function) return pybind11::cast(prediction.kind).release();
    return object(static_cast<const pfc::python::PythonPrediction&>(*prediction.function).object()).release();
  }
};

}  // namespace pybind11::detail
