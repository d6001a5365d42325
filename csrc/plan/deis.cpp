// DEIS (Zhang & Chen 2023), the rho-AB methods: on any path x / alpha obeys d(x / alpha) / d rho = noise with rho = sigma / alpha,
// so a step is x' = (alpha'/alpha) x + alpha' integral of the extrapolated noise over [rho, rho']. The noise is extrapolated by
// its Lagrange polynomial through the last grid points, in rho, or, for the variant "logrho" (as diffusers does), in log rho.
// A step that leaves rho = infinity (t = 0) or ends on it (backwards), or ends on rho = 0 or leaves it in log rho, is a DDIM
// step, which is of first order.
#include <algorithm>
#include <cmath>

#include "level.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

// Integrals over rho of the Lagrange polynomials in u = log rho: of l_k(u) e^u du, by Gauss-Legendre's rule with five nodes on
// pieces short enough that e^u is a polynomial to the last bit there.
std::vector<double> log_integrals(const std::vector<double>& nodes, double lo, double hi) {
  static constexpr double kNode[] = {0.0, 0.53846931010568309, 0.90617984593866399};
  static constexpr double kWeight[] = {0.56888888888888889, 0.47862867049936647, 0.23692688505618909};
  std::vector<double> sums(nodes.size(), 0.0);
  const int pieces = 4 + static_cast<int>(std::ceil(std::fabs(hi - lo) / 0.05));
  const double half = 0.5 * (hi - lo) / pieces;
  for (int piece = 0; piece < pieces; ++piece) {
    const double mid = lo + (2 * piece + 1) * half;
    for (int n = -2; n <= 2; ++n) {
      const double u = mid + half * (n < 0 ? -kNode[-n] : kNode[n]);
      const double weight = half * kWeight[n < 0 ? -n : n] * std::exp(u);
      for (std::size_t k = 0; k < nodes.size(); ++k) {
        double basis = 1.0;
        for (std::size_t j = 0; j < nodes.size(); ++j)
          if (j != k) basis *= (u - nodes[j]) / (nodes[k] - nodes[j]);
        sums[k] += weight * basis;
      }
    }
  }
  return sums;
}

}  // namespace

void fill_deis(Builder& plan, const Solver& solver, const SolverOptions& options) {
  const bool in_log = options.variant == "logrho";
  plan.work_in(Prediction::kNoise);
  std::vector<Level> level;
  for (double t : plan.times()) level.push_back(level_of(plan.path(), t));
  const int start = fill_start(plan, options, solver.order);
  // Whether the prediction at a grid point is a noise that the polynomial can go through: at rho = 0 (t = 1, backwards) a field
  // may not determine it, and a start's own step remembers the velocity.
  const auto usable = [&](int i) {
    const Level& at = level[i];
    return std::isfinite(at.rho) &&
           (at.rho > 0.0 || (!in_log && start == 0 && plan.determines(Prediction::kNoise, at.t)));
  };
  for (int step = start; step < plan.steps(); ++step) {
    const Level& now = level[step];
    const Level& next = level[step + 1];
    if (now.rho == 0.0 && !usable(step)) {
      leave_data(plan, step);
      continue;
    }
    PlanRow row;
    row.completes_step = true;
    if (!std::isfinite(now.rho)) {
      // The noise is x / sigma there whatever the field says; its predicted data moves x.
      const double held = next.sigma / now.sigma;
      row.a = held;
      row.a_minus_1 = (next.sigma - now.sigma) / now.sigma;
      row.b.push_back({plan.next_prediction(), next.alpha - now.alpha * held});
      plan.mark_grid(step);
      plan.evaluate_at(now.t, step, std::move(row), Prediction::kData);
      continue;
    }
    int order = std::min(solver.order, step + 1);
    while (order > 1 && !usable(step - order + 1)) --order;
    if ((in_log && next.rho == 0.0) || !std::isfinite(next.rho)) order = 1;
    std::vector<double> nodes;
    for (int j = 0; j < order; ++j) nodes.push_back(in_log ? std::log(level[step - j].rho) : level[step - j].rho);
    const std::vector<double> weights = order == 1 ? std::vector<double>{next.rho - now.rho}
                                        : in_log   ? log_integrals(nodes, nodes[0], std::log(next.rho))
                                                   : lagrange_integrals(nodes, now.rho, next.rho);
    row.a = next.alpha / now.alpha;
    row.a_minus_1 = (next.alpha - now.alpha) / now.alpha;
    for (int j = 0; j < order; ++j)
      row.b.push_back({j == 0 ? plan.next_prediction() : plan.prediction_at_grid(step - j),
                       // alpha' (rho' - rho) is sigma' where alpha' = 0.
                       std::isfinite(next.rho) ? next.alpha * weights[static_cast<std::size_t>(j)] : next.sigma});
    plan.evaluate_at_grid(step, std::move(row));
  }
}

}  // namespace pfc::plan
