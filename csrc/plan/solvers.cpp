#include "solvers.hpp"

#include <stdexcept>

namespace pfc::plan {

const std::vector<Solver>& solvers() {
  static const std::vector<Solver> table = {
      {"euler", "Euler's method in t; on the linear path the same as DDIM", 1, 1, fill_runge_kutta},
      {"midpoint", "explicit midpoint (Runge 1895)", 2, 2, fill_runge_kutta},
      {"heun", "explicit trapezoid (Heun 1900)", 2, 2, fill_runge_kutta},
      {"rk4", "the classical Runge-Kutta method (Kutta 1901)", 4, 4, fill_runge_kutta},
      {"ab2", "Adams-Bashforth of order 2 with variable steps, started by Euler", 2, 1, fill_adams_bashforth},
      {"ddim", "DDIM (Song, Meng & Ermon 2021, eq. 12 with sigma = 0), on any path", 1, 1, fill_ddim},
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

Plan build(const std::string& name, const Path& path, Prediction prediction, const std::vector<double>& times,
           const SolverOptions& options) {
  const Solver& solver = find_solver(name);
  Builder builder(name, path, prediction, times);
  solver.fill(builder, solver, options);
  return std::move(builder).finish();
}

}  // namespace pfc::plan
