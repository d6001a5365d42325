// The solvers. To add one: write a function that fills rows, in a file of its family, and give it a line in the table
// of solvers.cpp. Nothing else changes: no kernel, no loop, no device code.
#pragma once

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "../core/tableau.hpp"
#include "plan.hpp"

namespace pfc::plan {

struct SolverOptions {
  int order = 0;  // of the families that have several; 0 is the solver's default
  // Take the last step in full even if it has a stage at t = 1 (MATHS "Ends"; EDM, Karras et al. 2022, algorithm 1, has
  // the default: first order there).
  bool full_last_step = false;
  // Multistep methods ramp up through the lower orders by default; or take single-step methods of their own order.
  bool full_start = false;
  double eta = 1.0;                         // of the methods that scale their noise by it
  std::string variant;                      // of the families that have some
  std::function<double(double)> diffusion;  // w(t) of the interpolant SDEs
  // Churn (Karras et al. 2022, algorithm 2); noise levels as rho = sigma / alpha.
  double s_churn = 0.0, s_min = 0.0, s_max = std::numeric_limits<double>::infinity(), s_noise = 1.0;
};

struct Solver {
  const char* name;
  const char* summary;  // with the source
  int order;            // a family's default; while rows are filled, the chosen one
  int stages;           // evaluations of a full step
  void (*fill)(Builder&, const Solver&, const SolverOptions&);
  bool stochastic = false;
  std::vector<std::string> options{};   // that it takes beyond `last`
  std::vector<std::string> variants{};  // the first is the default
  int max_order = 0;                    // of a family; 0 where the order is not an option
  int min_order = 1;
};

const std::vector<Solver>& solvers();
// Throws unless the solver takes the option, and names what it takes.
void check_option(const Solver& solver, const std::string& option);
// w(t) of a name: constant, sigma, sigma/alpha, cosine, sine.
std::function<double(double)> named_diffusion(const Path& path, const std::string& name);
const Solver& find_solver(const std::string& name);  // throws std::invalid_argument that lists the known names

Plan build(const std::string& solver, const Path& path, Prediction prediction, const std::vector<double>& times,
           const SolverOptions& options);

// One file per family.
void fill_runge_kutta(Builder&, const Solver&, const SolverOptions&);
void fill_adams_bashforth(Builder&, const Solver&, const SolverOptions&);
void fill_ddim(Builder&, const Solver&, const SolverOptions&);
void fill_dpm_solver(Builder&, const Solver&, const SolverOptions&);
void fill_unipc(Builder&, const Solver&, const SolverOptions&);
void fill_deis(Builder&, const Solver&, const SolverOptions&);
void fill_res(Builder&, const Solver&, const SolverOptions&);
void fill_edm_heun(Builder&, const Solver&, const SolverOptions&);
void fill_euler_maruyama(Builder&, const Solver&, const SolverOptions&);
void fill_stochastic_heun(Builder&, const Solver&, const SolverOptions&);
void fill_euler_ancestral(Builder&, const Solver&, const SolverOptions&);
void fill_consistency(Builder&, const Solver&, const SolverOptions&);

// A Runge-Kutta step in t whose slots hold `working`; the building block of full-order starts.
void runge_kutta_step(Builder&, int step, const Tableau&, Prediction working);
// The single-step start of a multistep method of an order, if the options ask for one; returns the first step left to do.
int fill_start(Builder&, const SolverOptions&, int order);
// A first-order step that leaves sigma = 0 (t = 1, run backwards), where lambda is infinite: the data is x there whatever the
// field says, and its predicted noise moves x, alpha'/alpha x + sigma' noise, which on the linear path is Euler's step in the
// velocity. Euler's step itself where the field determines the velocity alone (sigma infinitely steep); one that predicts the
// data determines neither and is refused.
void leave_data(Builder&, int step);
// The integrals over [lo, hi] of the Lagrange basis polynomials on the nodes.
std::vector<double> lagrange_integrals(const std::vector<double>& nodes, double lo, double hi);

}  // namespace pfc::plan
