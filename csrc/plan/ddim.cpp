// DDIM on any path: with the predicted data D and the predicted noise e held fixed over the step,
//   x' = alpha' D + sigma' e,  and with e = (x - alpha D) / sigma:  x' = (sigma'/sigma) x + (alpha' - alpha
//   sigma'/sigma) D,
// or, with D = (x - sigma e) / alpha:  x' = (alpha'/alpha) x + (sigma' - sigma alpha'/alpha) e.
// The two are the same map. The first is finite where alpha = 0, the second where sigma = 0; a field that predicts the
// noise is worked with as it is, which leaves its prediction unrounded by a conversion. Backwards it inverts a sample, as the
// paper's section 4.3 does.

#include "solvers.hpp"

namespace pfc::plan {

void leave_data(Builder& plan, int step) {
  const double t = plan.times()[step];
  const double end = plan.times()[step + 1];
  const PathPoint now = plan.at(t);
  const PathPoint next = plan.at(end);
  PlanRow row;
  row.completes_step = true;
  plan.mark_grid(step);
  if (!plan.determines(Prediction::kNoise, t) && plan.determines(Prediction::kVelocity, t)) {
    row.b.push_back({plan.next_prediction(), end - t});
    plan.evaluate_at(t, step, std::move(row), Prediction::kVelocity);
    return;
  }
  row.a = next.alpha / now.alpha;
  row.a_minus_1 = (next.alpha - now.alpha) / now.alpha;
  row.b.push_back({plan.next_prediction(), next.sigma});
  plan.evaluate_at(t, step, std::move(row), Prediction::kNoise);
}

void fill_ddim(Builder& plan, const Solver&, const SolverOptions&) {
  const bool in_noise = plan.prediction() == Prediction::kNoise || plan.prediction() == Prediction::kScore;
  plan.work_in(in_noise ? Prediction::kNoise : Prediction::kData);
  for (int step = 0; step < plan.steps(); ++step) {
    const double t = plan.times()[step];
    const PathPoint now = plan.at(t);
    const PathPoint next = plan.at(plan.times()[step + 1]);
    if (now.sigma <= 0.0) {
      leave_data(plan, step);
      continue;
    }
    plan.require(Prediction::kData, t);
    const double held = in_noise ? next.alpha / now.alpha : next.sigma / now.sigma;
    PlanRow row;
    row.completes_step = true;
    row.set_a(held);
    row.b.push_back({plan.next_prediction(), in_noise ? next.sigma - now.sigma * held : next.alpha - now.alpha * held});
    plan.evaluate_at(t, step, std::move(row));
  }
}

}  // namespace pfc::plan
