// Exponential Runge-Kutta methods in lambda on the predicted data (Hochbruck & Ostermann 2005; "RES" of Zhang et al. 2023). With
// h the step in lambda, a stage at lambda + c h is (sigma_c/sigma) x + alpha_c h sum_j a_j D_j, with phi_k at -h, or -c h:
//   order 2 (ETD2RK)  c2 = 1/2; weights phi_1 - phi_2/c2, phi_2/c2
//   order 3           c2 = 1/2, c3 = 2/3; a32 = 4 phi_2(-c3 h)/(9 c2), a31 = c3 phi_1(-c3 h) - a32; weights
//                     phi_1 - 3/2 phi_2, 0, 3/2 phi_2
// Where lambda is infinite, at t = 0 and t = 1, a step is DDIM's.
#include <algorithm>
#include <cmath>

#include "level.hpp"
#include "phi.hpp"
#include "solvers.hpp"

namespace pfc::plan {

void fill_res(Builder& plan, const Solver& solver, const SolverOptions&) {
  plan.work_in(Prediction::kData);
  for (int step = 0; step < plan.steps(); ++step) {
    const Level now = level_of(plan.path(), plan.times()[step]);
    const Level end = level_of(plan.path(), plan.times()[step + 1]);
    if (now.sigma <= 0.0) {
      leave_data(plan, step);
      continue;
    }
    const double h = end.lambda - now.lambda;
    const bool finite = std::isfinite(h);
    const int stages = finite ? solver.order : 1;
    const int first = plan.next_prediction();
    const double c[] = {0.0, 0.5, 2.0 / 3.0};
    std::vector<Level> stage{now};
    for (int i = 1; i < stages; ++i)
      stage.push_back(level_of(plan.path(), time_of_lambda(plan.path(), std::min(now.t, end.t), std::max(now.t, end.t),
                                                           now.lambda + c[i] * h)));
    for (int i = 0; i < stages; ++i) {
      const bool last = i + 1 == stages;
      const Level& next = last ? end : stage[i + 1];
      std::vector<double> weight;  // of the stages so far, times h
      if (last && stages == 3) {
        weight = {h * (phi(1, -h) - 1.5 * phi(2, -h)), 0.0, h * 1.5 * phi(2, -h)};
      } else if (last && stages == 2) {
        weight = {h * (phi(1, -h) - phi(2, -h) / c[1]), h * phi(2, -h) / c[1]};
      } else if (!last && i == 1) {
        const double a32 = 4.0 * phi(2, -c[2] * h) / (9.0 * c[1]);
        weight = {h * (c[2] * phi(1, -c[2] * h) - a32), h * a32};
      } else {
        weight = {last && !finite ? 0.0 : h * c[1] * phi(1, -c[1] * h)};
      }
      PlanRow row;
      row.completes_step = last;
      const double held = next.sigma / now.sigma;
      (last ? row.a : row.c) = held;
      (last ? row.a_minus_1 : row.c_minus_1) = (next.sigma - now.sigma) / now.sigma;
      auto& terms = last ? row.b : row.e;
      for (std::size_t j = 0; j < weight.size(); ++j)
        if (weight[j] != 0.0) terms.push_back({first + static_cast<int>(j), next.alpha * weight[j]});
      if (last && !finite) terms = {{first, next.alpha - now.alpha * held}};
      plan.evaluate_at(stage[i].t, step, std::move(row));
    }
  }
}

}  // namespace pfc::plan
