// DPM-Solver++ (Lu et al. 2022): exponential multistep methods in lambda on the predicted data D. With h the step in lambda,
// r = h / h_previous, E = e^{-h} - 1 and L = (sigma'/sigma) x - alpha' E D:
//   1S  L                                   (DDIM)
//   2M  L - alpha' E (D - D_) r / 2
//   3M  L + alpha' h phi_2(-h) D1 + 2 alpha' h phi_3(-h) D2, with D1, D2 the derivatives of the parabola through the last
//       three D. The factor 2 is what the third-order term of the expansion has; two public codes lack it and have order 2.
//   2M SDE (Lu et al. 2022, eq. 18; eta scales the noise): (sigma'/sigma) e^{-eta h} x
//       + alpha' (1 - e^{-(1+eta) h}) (D + (D - D_) r / 2) + sigma' sqrt(1 - e^{-2 eta h}) xi
// Where lambda is infinite a step is of first order, and the step after one that left t = 0, or t = 1 backwards, too.
#include <algorithm>
#include <cmath>

#include "level.hpp"
#include "phi.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

// Weights of D, D_ and D__ in the second and third order corrections, divided by alpha'.
std::vector<double> corrections(int order, double h, double h1, double h2) {
  if (order == 2) {
    const double k = -0.5 * std::expm1(-h) * h / h1;
    return {k, -k, 0.0};
  }
  const double r0 = h1 / h, r1 = h2 / h;
  const double share = r0 / (r0 + r1);
  // The divided differences d01 = (D - D_)/r0 and d12 = (D_ - D__)/r1 give D1 = d01 + share (d01 - d12) and
  // D2 = (d01 - d12) / (r0 + r1).
  const double first = h * phi(2, -h), second = 2.0 * h * phi(3, -h) / (r0 + r1);
  const double on01 = first * (1.0 + share) + second, on12 = -(first * share + second);
  return {on01 / r0, -on01 / r0 + on12 / r1, -on12 / r1};
}

}  // namespace

void fill_dpm_solver(Builder& plan, const Solver& solver, const SolverOptions& options) {
  plan.work_in(Prediction::kData);
  const double eta = solver.stochastic ? options.eta : 0.0;
  std::vector<Level> level;
  for (double t : plan.times()) level.push_back(level_of(plan.path(), t));
  const int start = fill_start(plan, options, solver.order);
  for (int step = start; step < plan.steps(); ++step) {
    const Level& now = level[step];
    const Level& next = level[step + 1];
    if (now.sigma <= 0.0) {
      leave_data(plan, step);
      continue;
    }
    const double h = next.lambda - now.lambda;
    int order = std::min(solver.order, step + 1);
    while (order > 1 && !level[step - order + 1].finite()) --order;
    if (!std::isfinite(h)) order = 1;
    PlanRow row;
    row.completes_step = true;
    const double held = next.sigma / now.sigma;
    const double decay = eta == 0.0 ? 1.0 : std::exp(-eta * h);  // 0 where h is infinite
    row.a = held * decay;
    row.a_minus_1 = eta == 0.0 ? (next.sigma - now.sigma) / now.sigma : row.a - 1.0;
    const double gain = eta == 0.0 ? next.alpha - now.alpha * held : next.alpha * -std::expm1(-(1.0 + eta) * h);
    std::vector<double> weights{gain, 0.0, 0.0};
    if (eta != 0.0 && order == 2) {
      const double k = 0.5 * gain * h / (now.lambda - level[step - 1].lambda);
      weights = {gain + k, -k, 0.0};
    } else if (order > 1) {
      const double h1 = now.lambda - level[step - 1].lambda;
      const double h2 = order == 3 ? level[step - 1].lambda - level[step - 2].lambda : 0.0;
      const std::vector<double> more = corrections(order, h, h1, h2);
      for (int j = 0; j < 3; ++j) weights[j] += next.alpha * more[j];
    }
    for (int j = 0; j < order; ++j)
      row.b.push_back({j == 0 ? plan.next_prediction() : plan.prediction_at_grid(step - j), weights[j]});
    if (eta != 0.0 && next.sigma > 0.0) row.s.push_back({step, next.sigma * std::sqrt(-std::expm1(-2.0 * eta * h))});
    plan.evaluate_at_grid(step, std::move(row));
  }
}

}  // namespace pfc::plan
