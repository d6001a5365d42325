// The solvers. To add one: write a function that fills rows, in a file of its family, and give it a line in the table
// of solvers.cpp. Nothing else changes: no kernel, no loop, no device code.
#pragma once

#include <vector>

#include "plan.hpp"

namespace pfc::plan {

struct SolverOptions {
  // Take the last step in full even if it has a stage at t = 1 (MATHS "Ends"; EDM, Karras et al. 2022, algorithm 1, has
  // the default: first order there).
  bool full_last_step = false;
};

struct Solver {
  const char* name;
  const char* summary;  // with the source
  int order;
  int stages;  // evaluations of a full step
  void (*fill)(Builder&, const Solver&, const SolverOptions&);
};

const std::vector<Solver>& solvers();
const Solver& find_solver(const std::string& name);  // throws std::invalid_argument that lists the known names

Plan build(const std::string& solver, const Path& path, Prediction prediction, const std::vector<double>& times,
           const SolverOptions& options);

// One file per family.
void fill_runge_kutta(Builder&, const Solver&, const SolverOptions&);
void fill_adams_bashforth(Builder&, const Solver&, const SolverOptions&);
void fill_ddim(Builder&, const Solver&, const SolverOptions&);

}  // namespace pfc::plan
