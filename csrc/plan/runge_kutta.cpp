// Explicit Runge-Kutta methods in t, from their tableaus: stage i is evaluated at y_i = x + h sum_j a_ij u_j, and the step
// ends with x + h sum_i b_i u_i.
#include <cstring>
#include <stdexcept>

#include "level.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

const Tableau& find_tableau(const char* name) {
  for (const Tableau* tableau : kTableaus)
    if (!std::strcmp(tableau->name, name)) return *tableau;
  throw std::logic_error(std::string("no tableau is called ") + name);
}

// x + (what is added), as a combination of x and the predictions of the step's stages.
struct Combination {
  double x = 0.0;
  std::vector<double> d;

  void add(double factor, const Combination& other) {
    x += factor * other.x;
    for (std::size_t j = 0; j < d.size(); ++j) d[j] += factor * other.d[j];
  }
};

}  // namespace

void runge_kutta_step(Builder& plan, int step, const Tableau& tableau, Prediction working) {
  const double t = plan.times()[step];
  const double end = plan.times()[step + 1];
  const double h = end - t;
  const int first = plan.next_prediction();
  const Combination nothing{0.0, std::vector<double>(tableau.stages, 0.0)};
  std::vector<Combination> velocity;  // of each stage
  Combination moved = nothing;        // the stage's point less x
  for (int i = 0; i < tableau.stages; ++i) {
    // c = 1 names the grid point itself: t + 1 h could miss it by a rounding.
    const double at = tableau.c[i] == 1.0 ? end : t + tableau.c[i] * h;
    // u = p y + q D with y = x + moved.
    const Conversion u = plan.conversion(working, Prediction::kVelocity, at);
    Combination slope = nothing;
    slope.add(u.p, moved);
    slope.x += u.p;
    slope.d[i] += u.q;
    velocity.push_back(slope);
    const bool last = i + 1 == tableau.stages;
    const double* weights = last ? tableau.b : tableau.a[i + 1];
    moved = nothing;
    for (int j = 0; j <= i; ++j) moved.add(h * weights[j], velocity[j]);
    PlanRow row;
    row.completes_step = last;
    (last ? row.a : row.c) = 1.0 + moved.x;
    (last ? row.a_minus_1 : row.c_minus_1) = moved.x;
    auto& terms = last ? row.b : row.e;
    for (int j = 0; j <= i; ++j)
      if (moved.d[j] != 0.0) terms.push_back({first + j, moved.d[j]});
    plan.evaluate_at(at, step, std::move(row), working);
  }
}

void fill_runge_kutta(Builder& plan, const Solver& solver, const SolverOptions& options) {
  const Tableau& full = find_tableau(solver.name);
  for (int step = 0; step < plan.steps(); ++step) {
    // A stage at t = 1 divides by sigma = 0 on exact fields; the last step is then first order unless asked otherwise.
    bool reaches_end = false;
    for (int i = 0; i < full.stages; ++i)
      reaches_end = reaches_end || (plan.times()[step + 1] == 1.0 && full.c[i] == 1.0);
    runge_kutta_step(plan, step, reaches_end && !options.full_last_step ? kEuler : full, Prediction::kVelocity);
  }
}

int fill_start(Builder& plan, const SolverOptions& options, int order) {
  if (!options.full_start || order < 2) return 0;
  if (order > 4) throw std::logic_error("no single-step start of order " + std::to_string(order));
  const Tableau* const method[] = {&kMidpoint, &kHeun3, &kRK4};
  // Leaving an infinite lambda, the prediction there is of no use to the steps after it, unless it is the velocity.
  const bool useful = plan.working() == Prediction::kVelocity || level_of(plan.path(), plan.times()[0]).finite();
  const int steps = order - 1 + (useful ? 0 : 1);
  int step = 0;
  // A step into an infinite lambda is left to the method itself, which takes it by its own rule for the end.
  for (; step < steps && step < plan.steps() && level_of(plan.path(), plan.times()[step + 1]).finite(); ++step) {
    const bool finite = level_of(plan.path(), plan.times()[step]).finite();
    if (!useful && step == 0 && plan.backwards() && !plan.determines(Prediction::kVelocity, plan.times()[0])) {
      leave_data(plan, step);
      continue;
    }
    plan.mark_grid(step);
    runge_kutta_step(plan, step, *method[order - 2], finite ? plan.working() : Prediction::kVelocity);
  }
  return step;
}

}  // namespace pfc::plan
