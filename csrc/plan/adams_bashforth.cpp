// Adams-Bashforth with variable steps: the velocity is extrapolated by its Lagrange polynomial through the last grid
// points and integrated over the step. The start ramps up through the lower orders, or is made of single steps of full order.
#include <algorithm>

#include "solvers.hpp"

namespace pfc::plan {

// By expanding each polynomial in powers of (t - lo).
std::vector<double> lagrange_integrals(const std::vector<double>& nodes, double lo, double hi) {
  std::vector<double> weights;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    std::vector<double> poly{1.0};
    for (std::size_t j = 0; j < nodes.size(); ++j) {
      if (j == i) continue;
      const double root = nodes[j] - lo;
      const double scale = 1.0 / (nodes[i] - nodes[j]);
      std::vector<double> next(poly.size() + 1, 0.0);
      for (std::size_t k = 0; k < poly.size(); ++k) {
        next[k + 1] += poly[k] * scale;
        next[k] -= poly[k] * scale * root;
      }
      poly = std::move(next);
    }
    double sum = 0.0;
    double power = hi - lo;
    for (std::size_t k = 0; k < poly.size(); ++k, power *= hi - lo) sum += poly[k] * power / static_cast<double>(k + 1);
    weights.push_back(sum);
  }
  return weights;
}

void fill_adams_bashforth(Builder& plan, const Solver& solver, const SolverOptions& options) {
  for (int step = fill_start(plan, options, solver.order); step < plan.steps(); ++step) {
    const int order = std::min(solver.order, step + 1);
    std::vector<double> nodes;
    for (int j = 0; j < order; ++j) nodes.push_back(plan.times()[step - j]);
    const std::vector<double> weights = lagrange_integrals(nodes, plan.times()[step], plan.times()[step + 1]);
    PlanRow row;
    row.completes_step = true;
    for (int j = 0; j < order; ++j)
      row.b.push_back(
          {j == 0 ? plan.next_prediction() : plan.prediction_at_grid(step - j), weights[static_cast<std::size_t>(j)]});
    plan.evaluate_at_grid(step, std::move(row));
  }
}

}  // namespace pfc::plan
