#include "solvers.hpp"

#include <cmath>
#include <stdexcept>

namespace pfc::plan {

const std::vector<Solver>& solvers() {
  static const std::vector<Solver> table = {
      {"euler", "Euler's method in t; on the linear path the same as DDIM", 1, 1, fill_runge_kutta},
      {"midpoint", "explicit midpoint (Runge 1895)", 2, 2, fill_runge_kutta},
      {"heun", "explicit trapezoid (Heun 1900)", 2, 2, fill_runge_kutta},
      {"ralston2", "the order-2 method of least error bound (Ralston 1962)", 2, 2, fill_runge_kutta},
      {"heun3", "Heun's method of order 3 (Heun 1900)", 3, 3, fill_runge_kutta},
      {"rk3", "Kutta's method of order 3 (Kutta 1901)", 3, 3, fill_runge_kutta},
      {"ssprk3", "strong-stability preserving, order 3 (Shu & Osher 1988)", 3, 3, fill_runge_kutta},
      {"rk4", "the classical Runge-Kutta method (Kutta 1901)", 4, 4, fill_runge_kutta},
      {"rk38", "the 3/8 rule (Kutta 1901)", 4, 4, fill_runge_kutta},
      {"bosh3", "Bogacki & Shampine 1989, fixed steps", 3, 3, fill_runge_kutta},
      {"dopri5", "Dormand & Prince 1980, fixed steps", 5, 6, fill_runge_kutta},
      {"tsit5", "Tsitouras 2011, fixed steps", 5, 6, fill_runge_kutta},
      {"dopri8", "Prince & Dormand's order-8 method of DOP853, fixed steps", 8, 12, fill_runge_kutta},
      {"ab1", "Adams-Bashforth of order 1: Euler", 1, 1, fill_adams_bashforth, false, {"start"}},
      {"ab2", "Adams-Bashforth of order 2 with variable steps", 2, 1, fill_adams_bashforth, false, {"start"}},
      {"ab3", "Adams-Bashforth of order 3 with variable steps", 3, 1, fill_adams_bashforth, false, {"start"}},
      {"ab4", "Adams-Bashforth of order 4 with variable steps", 4, 1, fill_adams_bashforth, false, {"start"}},
      {"ddim", "DDIM (Song, Meng & Ermon 2021, eq. 12 with sigma = 0), on any path", 1, 1, fill_ddim},
      {"dpmpp_1s", "DPM-Solver++ of order 1 (Lu et al. 2022): DDIM on the predicted data", 1, 1, fill_dpm_solver},
      {"dpmpp_2m", "DPM-Solver++(2M) (Lu et al. 2022)", 2, 1, fill_dpm_solver, false, {"start"}},
      {"dpmpp_3m", "DPM-Solver++(3M) (Lu et al. 2022)", 3, 1, fill_dpm_solver, false, {"start"}},
      {"dpmpp_2m_sde",
       "DPM-Solver++(2M) for the SDE, noise scaled by eta (Lu et al. 2022)",
       2,
       1,
       fill_dpm_solver,
       true,
       {"eta"}},
      {"unipc",
       "UniPC (Zhao et al. 2023); its corrector gains an order",
       2,
       1,
       fill_unipc,
       false,
       {"order", "variant", "start"},
       {"bh2", "bh1"},
       3},
      {"deis",
       "DEIS, the rho-AB methods (Zhang & Chen 2023)",
       3,
       1,
       fill_deis,
       false,
       {"order", "variant", "start"},
       {"rho", "logrho"},
       4},
      {"res",
       "exponential Runge-Kutta in lambda (Hochbruck & Ostermann 2005)",
       2,
       2,
       fill_res,
       false,
       {"order"},
       {},
       3,
       2},
      {"edm_heun",
       "Heun in sigma / alpha with churn (Karras et al. 2022)",
       2,
       2,
       fill_edm_heun,
       true,
       {"s_churn", "s_min", "s_max", "s_noise"}},
      {"euler_maruyama",
       "Euler-Maruyama for the interpolant SDE with diffusion w(t) (Ma et al. 2024)",
       1,
       1,
       fill_euler_maruyama,
       true,
       {"diffusion"}},
      {"stochastic_heun",
       "Heun for the interpolant SDE with diffusion w(t) (Ma et al. 2024)",
       2,
       2,
       fill_stochastic_heun,
       true,
       {"diffusion"}},
      {"euler_ancestral",
       "ancestral sampling with DDIM steps, noise scaled by eta",
       1,
       1,
       fill_euler_ancestral,
       true,
       {"eta"}},
      {"consistency", "data and fresh noise in turn (Song et al. 2023)", 1, 1, fill_consistency, true},
  };
  return table;
}

const Solver& find_solver(const std::string& name) {
  std::string known;
  for (const Solver& solver : solvers()) {
    if (name == solver.name) return solver;
    if (!known.empty()) known += ", ";
    known += solver.name;
  }
  throw std::invalid_argument("solver: unknown name '" + name + "', allowed are " + known);
}

namespace {

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_number(const char* name, double value, double lo, double hi) {
  if (!(value >= lo && value <= hi) || (std::isinf(value) && !std::isinf(hi)))
    refuse(std::string(name) + " is " + std::to_string(value) + ", allowed is " + std::to_string(lo) + " to " +
           std::to_string(hi));
}

}  // namespace

void check_option(const Solver& solver, const std::string& option) {
  for (const std::string& known : solver.options)
    if (option == known) return;
  refuse(option + ": solver '" + solver.name + "' does not take this option, it takes " + listed(solver.options) +
         (solver.options.empty() ? "last" : ", last"));
}

Plan build(const std::string& name, const Path& path, Prediction prediction, const std::vector<double>& times,
           const SolverOptions& given) {
  Solver solver = find_solver(name);
  SolverOptions options = given;
  if (options.order != 0 && (options.order < solver.min_order || options.order > solver.max_order))
    refuse("order is " + std::to_string(options.order) + ", solver '" + name + "' has the orders " +
           std::to_string(solver.min_order) + " to " + std::to_string(solver.max_order));
  if (options.order != 0) solver.order = options.order;
  if (options.variant.empty() && !solver.variants.empty()) options.variant = solver.variants.front();
  bool known = solver.variants.empty();
  for (const std::string& variant : solver.variants) known = known || variant == options.variant;
  if (!known)
    refuse("variant: solver '" + name + "' has no '" + options.variant + "', allowed are " + listed(solver.variants));
  const double most = std::numeric_limits<double>::max();
  // Above 1 an ancestral step would aim past sigma = 0.
  check_number("eta", options.eta, 0.0, name == "euler_ancestral" ? 1.0 : most);
  check_number("s_churn", options.s_churn, 0.0, most);
  check_number("s_min", options.s_min, 0.0, most);
  check_number("s_max", options.s_max, options.s_min, std::numeric_limits<double>::infinity());
  check_number("s_noise", options.s_noise, 0.0, most);
  Builder builder(name, path, prediction, times);
  if (builder.backwards() && solver.stochastic && (name != "edm_heun" || options.s_churn > 0.0))
    refuse("solver '" + name + "'" + (name == "edm_heun" ? " with s_churn > 0" : "") +
           " draws noise, which no step backwards can undo, so it cannot run on times that decrease (from " +
           std::to_string(times.front()) + " to " + std::to_string(times.back()) +
           "); a deterministic solver can: ddim, unipc, heun, ...");
  if (!options.diffusion) options.diffusion = named_diffusion(path, "sigma");
  solver.fill(builder, solver, options);
  return std::move(builder).finish();
}

}  // namespace pfc::plan
