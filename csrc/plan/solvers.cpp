#include "solvers.hpp"

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
      {"ab1", "Adams-Bashforth of order 1: Euler", 1, 1, fill_adams_bashforth},
      {"ab2", "Adams-Bashforth of order 2 with variable steps", 2, 1, fill_adams_bashforth},
      {"ab3", "Adams-Bashforth of order 3 with variable steps", 3, 1, fill_adams_bashforth},
      {"ab4", "Adams-Bashforth of order 4 with variable steps", 4, 1, fill_adams_bashforth},
      {"ddim", "DDIM (Song, Meng & Ermon 2021, eq. 12 with sigma = 0), on any path", 1, 1, fill_ddim},
      {"dpmpp_1s", "DPM-Solver++ of order 1 (Lu et al. 2022): DDIM on the predicted data", 1, 1, fill_dpm_solver},
      {"dpmpp_2m", "DPM-Solver++(2M) (Lu et al. 2022)", 2, 1, fill_dpm_solver},
      {"dpmpp_3m", "DPM-Solver++(3M) (Lu et al. 2022)", 3, 1, fill_dpm_solver},
      {"dpmpp_2m_sde", "DPM-Solver++(2M) for the SDE, noise scaled by eta (Lu et al. 2022)", 2, 1, fill_dpm_solver, true},
      {"unipc1", "UniPC of order 1 (Zhao et al. 2023); its corrector gains an order", 1, 1, fill_unipc},
      {"unipc2", "UniPC of order 2 (Zhao et al. 2023); its corrector gains an order", 2, 1, fill_unipc},
      {"unipc3", "UniPC of order 3 (Zhao et al. 2023); its corrector gains an order", 3, 1, fill_unipc},
      {"deis1", "DEIS of order 1 (Zhang & Chen 2023): DDIM on the predicted noise", 1, 1, fill_deis},
      {"deis2", "DEIS, rho-AB of order 2 (Zhang & Chen 2023)", 2, 1, fill_deis},
      {"deis3", "DEIS, rho-AB of order 3 (Zhang & Chen 2023)", 3, 1, fill_deis},
      {"deis4", "DEIS, rho-AB of order 4 (Zhang & Chen 2023)", 4, 1, fill_deis},
      {"res2", "exponential Runge-Kutta of order 2 in lambda (Hochbruck & Ostermann 2005)", 2, 2, fill_res},
      {"res3", "exponential Runge-Kutta of order 3 in lambda (Hochbruck & Ostermann 2005)", 3, 3, fill_res},
      {"edm_heun", "Heun in sigma / alpha with churn (Karras et al. 2022)", 2, 2, fill_edm_heun, true},
      {"euler_maruyama", "Euler-Maruyama for the interpolant SDE with diffusion w(t)", 1, 1, fill_euler_maruyama, true},
      {"stochastic_heun", "Heun for the interpolant SDE with diffusion w(t)", 2, 2, fill_stochastic_heun, true},
      {"euler_ancestral", "ancestral sampling with DDIM steps, noise scaled by eta", 1, 1, fill_euler_ancestral, true},
      {"consistency", "data and fresh noise in turn (Song et al. 2023)", 1, 1, fill_consistency, true},
  };
  return table;
}

const Solver& find_solver(const std::string& name) {
  std::string known;
  for (const Solver& solver : solvers()) {
    if (name == solver.name) return solver;
    known += (known.empty() ? "" : ", ") + std::string(solver.name);
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
