// Heun's method in rho = sigma / alpha on x / alpha with churn (Karras et al. 2022, algorithm 2), on any path. Before a step from
// rho inside [s_min, s_max] the noise level is raised to rho^ = rho (1 + gamma), gamma = min(s_churn / n, sqrt 2 - 1), by adding
// alpha^ sqrt(rho^^2 - rho^2) s_noise xi to (alpha^/alpha) x. The raised state is a point, not a state: the row that ends a step
// leaves x on the grid and writes the raised point beside it, and the rows of the step redraw the same noise.
// Leaving rho = infinity, or ending on it (backwards), a step is DDIM's; ending on rho = 0 it is Euler's, as there.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "level.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

struct Lift {
  Level level;         // raised
  double scale = 1.0;  // of the state
  double noise = 0.0;  // of the draw
};

Lift lift(const Builder& plan, const SolverOptions& o, double t) {
  const Level now = level_of(plan.path(), t);
  const double gamma = std::min(o.s_churn / plan.steps(), std::sqrt(2.0) - 1.0);
  if (!std::isfinite(now.rho) || gamma <= 0.0 || now.rho < o.s_min || now.rho > o.s_max) return {now};
  const double raised = now.rho * (1.0 + gamma);
  if (raised >= level_of(plan.path(), 0.0).rho)
    throw std::invalid_argument("s_churn: raising the noise level at t = " + std::to_string(t) +
                                " passes the path's highest; lower s_churn or s_max");
  const double back = find_time(plan.path(), 0.0, t, -raised, [](const Level& level) { return -level.rho; });
  const Level up = level_of(plan.path(), back);
  return {up, up.alpha / now.alpha, up.alpha * std::sqrt(up.rho * up.rho - now.rho * now.rho) * o.s_noise};
}

}  // namespace

void fill_edm_heun(Builder& plan, const Solver&, const SolverOptions& options) {
  plan.work_in(Prediction::kNoise);
  const auto& times = plan.times();
  Lift from = lift(plan, options, times[0]);
  if (from.noise != 0.0) {
    PlanRow row;
    row.t = times[0];
    row.set_c(from.scale);
    row.r.push_back({0, from.noise});
    plan.add(std::move(row));
  }
  for (int step = 0; step < plan.steps(); ++step) {
    const Level& now = from.level;
    const Level next = level_of(plan.path(), times[step + 1]);
    const Lift after = step + 1 < plan.steps() ? lift(plan, options, times[step + 1]) : Lift{next};
    const auto finish = [&](PlanRow& row, double a) {
      // x' = a (scale x + noise xi) + ...; and the next point, raised from x'.
      row.set_a(a * from.scale);
      if (from.noise != 0.0) row.s.push_back({step, a * from.noise});
      row.completes_step = true;
      if (after.noise != 0.0) {
        row.set_c(after.scale);
        row.r.push_back({step + 1, after.noise});
      }
    };
    if (now.rho == 0.0 && !plan.determines(Prediction::kNoise, now.t)) {
      leave_data(plan, step);  // backwards, so without churn
      from = after;
      continue;
    }
    const int first = plan.next_prediction();
    PlanRow row;
    if (!std::isfinite(now.rho)) {
      const double held = next.sigma / now.sigma;
      finish(row, held);
      row.b.push_back({first, next.alpha - now.alpha * held});
      plan.evaluate_at(now.t, step, std::move(row), Prediction::kData);
    } else if (!std::isfinite(next.rho)) {
      finish(row, 0.0);
      row.b.push_back({first, next.sigma});
      plan.evaluate_at(now.t, step, std::move(row));
    } else if (next.rho == 0.0 && !options.full_last_step) {
      finish(row, next.alpha / now.alpha);
      row.b.push_back({first, next.alpha * (next.rho - now.rho)});
      plan.evaluate_at(now.t, step, std::move(row));
    } else {
      const double ratio = next.alpha / now.alpha;
      const double move = next.alpha * (next.rho - now.rho);
      row.set_c(ratio * from.scale);
      if (from.noise != 0.0) row.r.push_back({step, ratio * from.noise});
      row.e.push_back({first, move});
      plan.evaluate_at(now.t, step, std::move(row));
      PlanRow end;
      finish(end, ratio);
      end.b = {{first, 0.5 * move}, {first + 1, 0.5 * move}};
      plan.evaluate_at(next.t, step, std::move(end));
    }
    from = after;
  }
}

}  // namespace pfc::plan
