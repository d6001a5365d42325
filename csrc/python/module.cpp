// _core: plans, paths, grids, tableaus and build information for Python. No torch header, so it depends on CPython
// alone.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../core/adaptive_tableau.hpp"
#include "../core/interpolate.hpp"
#include "../core/tableau.hpp"
#include "../plan/grids.hpp"
#include "../plan/solvers.hpp"
#include "host_functions.hpp"

namespace py = pybind11;
using namespace pfc;
using namespace pfc::plan;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

// alpha, sigma and their derivatives at every t, each of t's shape.
py::tuple path_coefficients(const Path& path, const Array& t) {
  const std::vector<py::ssize_t> shape(t.shape(), t.shape() + t.ndim());
  Array alpha(shape), sigma(shape), dalpha(shape), dsigma(shape);
  for (py::ssize_t i = 0; i < t.size(); ++i) {
    const PathPoint c = evaluate(path, t.data()[i]);
    alpha.mutable_data()[i] = c.alpha;
    sigma.mutable_data()[i] = c.sigma;
    dalpha.mutable_data()[i] = c.dalpha;
    dsigma.mutable_data()[i] = c.dsigma;
  }
  return py::make_tuple(alpha, sigma, dalpha, dsigma);
}

// A prediction as data x1 + noise x0 where the path has these coefficients, arrays of one shape.
py::tuple mixtures(Prediction prediction, const Array& alpha, const Array& sigma, const Array& dalpha,
                   const Array& dsigma) {
  for (const Array* other : {&sigma, &dalpha, &dsigma})
    if (other->size() != alpha.size()) throw std::invalid_argument("the coefficients must have one shape");
  const std::vector<py::ssize_t> shape(alpha.shape(), alpha.shape() + alpha.ndim());
  Array data(shape), noise(shape);
  for (py::ssize_t i = 0; i < alpha.size(); ++i) {
    const Mixture m = mixture(prediction, {alpha.data()[i], sigma.data()[i], dalpha.data()[i], dsigma.data()[i]});
    data.mutable_data()[i] = m.data;
    noise.mutable_data()[i] = m.noise;
  }
  return py::make_tuple(data, noise);
}

// x_t = alpha x1 + sigma x0 and target = data x1 + noise x0 at every t: what interpolate's kernels use.
py::tuple target_coefficients(const Path& path, Prediction prediction, const Array& t) {
  const std::vector<py::ssize_t> shape(t.shape(), t.shape() + t.ndim());
  Array alpha(shape), sigma(shape), data(shape), noise(shape);
  for (py::ssize_t i = 0; i < t.size(); ++i) {
    const auto c = interpolate_coefficients<double>(path, prediction, t.data()[i]);
    alpha.mutable_data()[i] = c.alpha;
    sigma.mutable_data()[i] = c.sigma;
    data.mutable_data()[i] = c.data;
    noise.mutable_data()[i] = c.noise;
  }
  return py::make_tuple(alpha, sigma, data, noise);
}

py::array table_of(const Plan& plan) {
  const std::vector<double> flat = plan.table();
  py::array_t<double> array({static_cast<py::ssize_t>(plan.rows.size()), static_cast<py::ssize_t>(record::kWidth)});
  std::copy(flat.begin(), flat.end(), array.mutable_data());
  return array;
}

py::dict describe_tableau(const Tableau& tableau) {
  std::vector<double> b(tableau.b, tableau.b + tableau.stages);
  std::vector<double> c(tableau.c, tableau.c + tableau.stages);
  std::vector<std::vector<double>> a;
  for (int i = 0; i < tableau.stages; ++i) a.emplace_back(tableau.a[i], tableau.a[i] + tableau.stages);
  py::dict result;
  result["name"] = tableau.name;
  result["order"] = tableau.order;
  result["a"] = a;
  result["b"] = b;
  result["c"] = c;
  return result;
}

// Every option is one of the solver's, or refused by name.
SolverOptions solver_options(const Solver& solver, const HostPath& path, const py::dict& given) {
  SolverOptions options;
  for (const auto& [key, value] : given) {
    const std::string name = py::cast<std::string>(key);
    check_option(solver, name);
    if (name == "order") options.order = py::cast<int>(value);
    if (name == "variant") options.variant = py::cast<std::string>(value);
    if (name == "start") options.full_start = py::cast<std::string>(value) == "single";
    if (name == "eta") options.eta = py::cast<double>(value);
    if (name == "s_churn") options.s_churn = py::cast<double>(value);
    if (name == "s_min") options.s_min = py::cast<double>(value);
    if (name == "s_max") options.s_max = py::cast<double>(value);
    if (name == "s_noise") options.s_noise = py::cast<double>(value);
    if (name == "diffusion")
      options.diffusion = py::isinstance<py::str>(value) ? named_diffusion(path, py::cast<std::string>(value))
                                                         : py::cast<std::function<double(double)>>(value);
  }
  return options;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Plans, paths, grids and tableaus of pyflowcore, in float64 on the host.";

  py::enum_<PathKind>(m, "PathKind")
      .value("linear", PathKind::kLinear)
      .value("trigonometric", PathKind::kTrigonometric)
      .value("vp", PathKind::kVP)
      .value("polynomial", PathKind::kPolynomial)
      .value("linear_vp", PathKind::kLinearVP)
      .value("ve", PathKind::kVE);
  py::enum_<Prediction>(m, "Prediction")
      .value("velocity", Prediction::kVelocity)
      .value("data", Prediction::kData)
      .value("noise", Prediction::kNoise)
      .value("score", Prediction::kScore)
      .value("v", Prediction::kV);

  py::class_<Path>(m, "Path")
      .def(py::init([](PathKind kind, double a, double b) { return Path{kind, a, b}; }), py::arg("kind"),
           py::arg("a") = 0.0, py::arg("b") = 0.0)
      .def_readonly("kind", &Path::kind)
      .def_readonly("a", &Path::a)
      .def_readonly("b", &Path::b);
  m.def("path_coefficients", &path_coefficients, py::arg("path"), py::arg("t"));
  m.def("target_coefficients", &target_coefficients, py::arg("path"), py::arg("prediction"), py::arg("t"));
  m.def(
      "mixture",
      [](Prediction prediction, double alpha, double sigma, double dalpha, double dsigma) {
        const Mixture m = mixture(prediction, {alpha, sigma, dalpha, dsigma});
        return py::make_tuple(m.data, m.noise);
      },
      py::arg("prediction"), py::arg("alpha"), py::arg("sigma"), py::arg("dalpha"), py::arg("dsigma"),
      "(data, noise) with prediction = data x1 + noise x0.");
  m.def("mixtures", &mixtures, py::arg("prediction"), py::arg("alpha"), py::arg("sigma"), py::arg("dalpha"),
        py::arg("dsigma"));
  m.def(
      "convert",
      [](const HostPath& path, const HostPrediction& from, Prediction to, double t) {
        const PathPoint c = evaluate(path, t);
        const Conversion k = from == to ? Conversion{0.0, 1.0} : convert(from.at(t, c).says, mixture(to, c), c);
        return py::make_tuple(k.p, k.q);
      },
      py::arg("path"), py::arg("source"), py::arg("target"), py::arg("t"),
      "(p, q) with target = p x + q source; not finite where source does not determine target.");
  m.def(
      "ask",
      [](const HostPath& path, const HostPrediction& prediction, const std::optional<HostPath>& along, double t) {
        const Question q = ask(path, prediction, along ? &*along : nullptr, t);
        return py::make_tuple(q.t, q.answer.in_scale);
      },
      py::arg("path"), py::arg("prediction"), py::arg("along"), py::arg("t"),
      "(the field's time, the factor of its input) at plan time t.");

  m.def("uniform_grid", &uniform_grid, py::arg("steps"));
  m.def("shift_grid", &shift_grid, py::arg("times"), py::arg("shift"));
  m.def("terminal_grid", &terminal_grid, py::arg("times"), py::arg("level"));
  m.def("karras_grid", &karras_grid, py::arg("steps"), py::arg("rho"), py::arg("least"), py::arg("most"));
  m.def("karras_rho_grid", &karras_rho_grid, py::arg("path"), py::arg("steps"), py::arg("rho"), py::arg("least"),
        py::arg("most"));
  m.def("exponential_grid", &exponential_grid, py::arg("steps"), py::arg("least"), py::arg("most"));
  m.def("beta_grid", &beta_grid, py::arg("steps"), py::arg("a"), py::arg("b"));
  m.def("logit_normal_grid", &logit_normal_grid, py::arg("steps"), py::arg("mean"), py::arg("scale"));
  m.def("linear_quadratic_grid", &linear_quadratic_grid, py::arg("steps"), py::arg("threshold"),
        py::arg("linear_steps"));
  m.def("cosine_grid", &cosine_grid, py::arg("steps"));
  m.def("lambda_grid", &lambda_grid, py::arg("path"), py::arg("steps"), py::arg("lo"), py::arg("hi"), py::arg("whole"));
  m.def("check_times", &check_times, py::arg("times"));

  py::class_<Term>(m, "Term")
      .def(py::init<int, double>(), py::arg("slot"), py::arg("coefficient"))
      .def_readonly("slot", &Term::id)
      .def_readonly("coefficient", &Term::coefficient);
  py::class_<Draw>(m, "Draw")
      .def(py::init<int, double>(), py::arg("index"), py::arg("coefficient"))
      .def_readonly("index", &Draw::index)
      .def_readonly("coefficient", &Draw::coefficient);
  py::class_<PlanRow>(m, "Row")
      .def(py::init<>())
      .def_readwrite("evaluates", &PlanRow::evaluates)
      .def_readwrite("t", &PlanRow::t)
      .def_readwrite("field_t", &PlanRow::field_t)
      .def_readwrite("step", &PlanRow::step)
      .def_readwrite("completes_step", &PlanRow::completes_step)
      .def_readwrite("in_scale", &PlanRow::in_scale)
      .def_readwrite("p", &PlanRow::p)
      .def_readwrite("q", &PlanRow::q)
      .def_readwrite("a", &PlanRow::a)
      .def_readwrite("a_minus_1", &PlanRow::a_minus_1)
      .def_readwrite("c", &PlanRow::c)
      .def_readwrite("c_minus_1", &PlanRow::c_minus_1)
      .def_readwrite("b_new", &PlanRow::b_new)
      .def_readwrite("e_new", &PlanRow::e_new)
      .def_readwrite("store", &PlanRow::store)
      .def_readwrite("b", &PlanRow::b)
      .def_readwrite("e", &PlanRow::e)
      .def_readwrite("s", &PlanRow::s)
      .def_readwrite("r", &PlanRow::r)
      .def_property_readonly("point_is_state", &PlanRow::point_is_state);
  py::class_<Plan>(m, "Plan")
      .def(py::init([](std::string solver, const HostPath& path, const HostPrediction& prediction, Prediction working,
                       std::vector<double> times, std::vector<PlanRow> rows, int slots,
                       const std::optional<HostPath>& along) {
             check_times(times);
             Plan plan{std::move(solver), path, along, prediction, working, std::move(times), std::move(rows), slots};
             validate(plan);
             return plan;
           }),
           py::arg("solver"), py::arg("path"), py::arg("prediction"), py::arg("working"), py::arg("times"),
           py::arg("rows"), py::arg("slots"), py::arg("along") = py::none())
      .def_readonly("solver", &Plan::solver)
      .def_readonly("path", &Plan::path)
      .def_readonly("along", &Plan::along)
      .def_readonly("prediction", &Plan::prediction)
      .def_readonly("working", &Plan::working)
      .def_readonly("times", &Plan::times)
      .def_property_readonly("rows", [](const Plan& plan) { return plan.rows; })  // copies: a plan does not change
      .def_readonly("slots", &Plan::slots)
      .def_property_readonly("steps", &Plan::steps)
      .def_property_readonly("nfe", &Plan::nfe)
      .def_property_readonly("draws", &Plan::draws)
      .def("table", &table_of);

  m.def(
      "build_plan",
      [](const std::string& solver, const HostPath& path, const HostPrediction& prediction,
         const std::vector<double>& times, bool full_last_step, const py::dict& given,
         const std::optional<HostPath>& along) {
        SolverOptions options = solver_options(find_solver(solver), along.value_or(path), given);
        options.full_last_step = full_last_step;
        return build(solver, path, prediction, times, options, along ? &*along : nullptr);
      },
      py::arg("solver"), py::arg("path"), py::arg("prediction"), py::arg("times"), py::arg("full_last_step") = false,
      py::arg("options") = py::dict(), py::arg("along") = py::none());
  m.def("solvers", [] {
    py::list names;
    for (const Solver& solver : solvers()) {
      py::dict entry;
      entry["name"] = solver.name;
      entry["summary"] = solver.summary;
      entry["order"] = solver.order;
      entry["stages"] = solver.stages;
      entry["stochastic"] = solver.stochastic;
      entry["options"] = solver.options;
      entry["variants"] = solver.variants;
      entry["orders"] = solver.max_order ? py::make_tuple(solver.min_order, solver.max_order)
                                         : py::make_tuple(solver.order, solver.order);
      names.append(entry);
    }
    return names;
  });
  m.def("tableaus", [] {
    py::list all;
    for (const Tableau* tableau : kTableaus) all.append(describe_tableau(*tableau));
    return all;
  });
  m.def("adaptive_tables", [] {
    py::dict all;
    for (const AdaptiveTableau* method : kAdaptiveTableaus) {
      py::array_t<double> table({method_record::kRows, method_record::kColumns});
      fill_method(*method, table.mutable_data());
      all[method->name] = table;
    }
    return all;
  });

  py::dict layout;
  using namespace record;
  for (const auto& [name, offset] : std::initializer_list<std::pair<const char*, int>>{{"t", kT},
                                                                                       {"evaluates", kEvaluates},
                                                                                       {"store", kStore},
                                                                                       {"in_scale", kInScale},
                                                                                       {"p", kP},
                                                                                       {"q", kQ},
                                                                                       {"a", kA},
                                                                                       {"a_minus_1", kAMinus1},
                                                                                       {"c", kC},
                                                                                       {"c_minus_1", kCMinus1},
                                                                                       {"b_new", kBNew},
                                                                                       {"e_new", kENew},
                                                                                       {"b", kB},
                                                                                       {"e", kE},
                                                                                       {"draw", kDraw},
                                                                                       {"s", kS},
                                                                                       {"r", kR},
                                                                                       {"width", kWidth},
                                                                                       {"max_slots", kMaxSlots},
                                                                                       {"max_draws", kMaxDraws}})
    layout[name] = offset;
  m.attr("record") = layout;

  py::dict build_info;
  build_info["compiler"] = __VERSION__;
  build_info["cuda_compiled"] = static_cast<bool>(PFC_CUDA_COMPILED);
  build_info["cuda_toolkit"] = PFC_CUDA_TOOLKIT;
  build_info["cuda_architectures"] = PFC_CUDA_ARCHITECTURES;
  build_info["version"] = PFC_VERSION;
  m.attr("build") = build_info;
}
