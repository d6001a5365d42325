// Explicit Runge-Kutta methods in t, from their tableaus: stage i is evaluated at y_i = x + h sum_j a_ij u_j, and the
// step ends with x + h sum_i b_i u_i.
#include <cstring>
#include <stdexcept>

#include "../core/tableau.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

const Tableau& find_tableau(const char* name) {
  for (const Tableau* tableau : kTableaus)
    if (!std::strcmp(tableau->name, name)) return *tableau;
  throw std::logic_error(std::string("no tableau is called ") + name);
}

}  // namespace

void fill_runge_kutta(Builder& plan, const Solver& solver, const SolverOptions& options) {
  const Tableau& full = find_tableau(solver.name);
  for (int step = 0; step < plan.steps(); ++step) {
    const double t = plan.times()[step];
    const double end = plan.times()[step + 1];
    const double h = end - t;
    // A stage at t = 1 divides by sigma = 0 on exact fields; the last step is then first order unless asked otherwise.
    bool reaches_end = false;
    for (int i = 0; i < full.stages; ++i) reaches_end = reaches_end || (end == 1.0 && full.c[i] == 1.0);
    const Tableau& tableau = reaches_end && !options.full_last_step ? kEuler : full;
    const int first = plan.next_prediction();
    for (int i = 0; i < tableau.stages; ++i) {
      const bool last = i + 1 == tableau.stages;
      const double* weights = last ? tableau.b : tableau.a[i + 1];
      PlanRow row;
      row.completes_step = last;
      auto& terms = last ? row.b : row.e;
      for (int j = 0; j <= i; ++j)
        if (weights[j] != 0.0) terms.push_back({first + j, h * weights[j]});
      // c = 1 names the grid point itself: t + 1 h could miss it by a rounding.
      plan.evaluate_at(tableau.c[i] == 1.0 ? end : t + tableau.c[i] * h, step, std::move(row));
    }
  }
}

}  // namespace pfc::plan
