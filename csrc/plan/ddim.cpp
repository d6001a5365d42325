// DDIM on any path: with the predicted data D and the predicted noise e held fixed over the step,
//   x' = alpha' D + sigma' e,  and with e = (x - alpha D) / sigma:  x' = (sigma'/sigma) x + (alpha' - alpha
//   sigma'/sigma) D,
// or, with D = (x - sigma e) / alpha:  x' = (alpha'/alpha) x + (sigma' - sigma alpha'/alpha) e.
// The two are the same map. The first is finite where alpha = 0, the second where sigma = 0; a field that predicts the
// noise is worked with as it is, which leaves its prediction unrounded by a conversion.

#include "solvers.hpp"

namespace pfc::plan {

void fill_ddim(Builder& plan, const Solver&, const SolverOptions&) {
  // Not where x / alpha is infinite: a path that begins there is integrated with a field of another, which may well be asked.
  const bool in_noise = (plan.prediction() == Prediction::kNoise || plan.prediction() == Prediction::kScore) &&
                        plan.at(plan.times()[0]).alpha > 0.0;
  plan.work_in(in_noise ? Prediction::kNoise : Prediction::kData);
  for (int step = 0; step < plan.steps(); ++step) {
    const double t = plan.times()[step];
    plan.require(Prediction::kData, t);
    const PathPoint now = plan.at(t);
    const PathPoint next = plan.at(plan.times()[step + 1]);
    const double held = in_noise ? next.alpha / now.alpha : next.sigma / now.sigma;
    PlanRow row;
    row.completes_step = true;
    row.set_a(held);
    row.b.push_back({plan.next_prediction(), in_noise ? next.sigma - now.sigma * held : next.alpha - now.alpha * held});
    plan.evaluate_at(t, step, std::move(row));
  }
}

}  // namespace pfc::plan
