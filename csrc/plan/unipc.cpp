// UniPC (Zhao et al. 2023): a predictor and a corrector in lambda on the predicted data, which share their evaluations, so
// that a step costs one. With h = lambda' - lambda, r_k = (lambda_{i-k} - lambda_i) / h and z = -h, both read
//   x' = (sigma'/sigma) x - alpha' (e^z - 1) D_i - alpha' B sum_k rho_k (D_{i-k} - D_i) / r_k,
// the corrector with r = 1, the new prediction, added. rho solves sum_k rho_k r_k^{j-1} = z phi_{j+1}(z) j! / B, for the
// variants B = z (bh1) and B = e^z - 1 (bh2). As in the paper rho = 1/2 where one coefficient is left.
// Predictor and corrector start from the same x and scale it alike, so the corrected state is the predicted one plus a
// combination of predictions. The state of the plan is therefore the predicted one: a row adds the correction of the step
// before and predicts the next, and the point of every evaluation is the state itself, on the grid.
// The variant "vary_coeff" of public code falls to order 1 and is not offered.
#include <algorithm>
#include <cmath>

#include "level.hpp"
#include "phi.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

struct Step {
  double a = 1.0, a_minus_1 = 0.0;
  double made = 0.0;           // weight of the prediction at the step's end (corrector)
  std::vector<double> weight;  // of D_i, D_{i-1}, ...
};

// Solves sum_k x_k r_k^{j} = b_j, j = 0.., by elimination with pivoting; at most three unknowns.
std::vector<double> solve_moments(const std::vector<double>& r, std::vector<double> b) {
  const std::size_t n = r.size();
  std::vector<std::vector<double>> m(n, std::vector<double>(n));
  for (std::size_t j = 0; j < n; ++j)
    for (std::size_t k = 0; k < n; ++k) m[j][k] = std::pow(r[k], static_cast<double>(j));
  for (std::size_t c = 0; c < n; ++c) {
    std::size_t best = c;
    for (std::size_t j = c + 1; j < n; ++j)
      if (std::fabs(m[j][c]) > std::fabs(m[best][c])) best = j;
    std::swap(m[c], m[best]);
    std::swap(b[c], b[best]);
    for (std::size_t j = c + 1; j < n; ++j) {
      const double f = m[j][c] / m[c][c];
      for (std::size_t k = c; k < n; ++k) m[j][k] -= f * m[c][k];
      b[j] -= f * b[c];
    }
  }
  for (std::size_t c = n; c-- > 0;) {
    for (std::size_t k = c + 1; k < n; ++k) b[c] -= m[c][k] * b[k];
    b[c] /= m[c][c];
  }
  return b;
}

Step make_step(const std::vector<Level>& level, int i, int order, bool corrector, bool bh1) {
  const Level& now = level[i];
  const Level& next = level[i + 1];
  const double h = next.lambda - now.lambda;
  const double held = next.sigma / now.sigma;
  Step step{held, (next.sigma - now.sigma) / now.sigma, 0.0, {next.alpha - now.alpha * held}};
  if (!std::isfinite(h)) return step;
  while (order > 1 && !level[i - order + 1].finite()) --order;
  const double z = -h;
  const double scale = bh1 ? z : std::expm1(z);
  std::vector<double> r;
  for (int k = 1; k < order; ++k) r.push_back((level[i - k].lambda - now.lambda) / h);
  if (corrector) r.push_back(1.0);
  if (r.empty()) return step;
  std::vector<double> rho{0.5};
  if (r.size() > 1) {
    std::vector<double> moments;
    double factorial = 1.0;
    for (std::size_t j = 1; j <= r.size(); ++j) {
      factorial *= static_cast<double>(j);
      moments.push_back(z * phi(static_cast<int>(j) + 1, z) * factorial / scale);
    }
    rho = solve_moments(r, std::move(moments));
  }
  for (std::size_t k = 0; k < r.size(); ++k) {
    const double weight = -next.alpha * scale * rho[k] / r[k];
    step.weight[0] -= weight;
    if (corrector && k + 1 == r.size())
      step.made = weight;
    else
      step.weight.push_back(weight);
  }
  return step;
}

}  // namespace

void fill_unipc(Builder& plan, const Solver& solver, const SolverOptions& options) {
  const bool bh1 = options.variant == "bh1";
  const int order = solver.order;
  plan.work_in(Prediction::kData);
  std::vector<Level> level;
  for (double t : plan.times()) level.push_back(level_of(plan.path(), t));
  // The corrector gains an order, so a full-order start has order + 1.
  const int start = fill_start(plan, options, order + 1);
  Step made;  // the prediction that x is, until this evaluation corrects it
  for (int i = start; i < plan.steps(); ++i) {
    if (level[i].sigma <= 0.0) {
      leave_data(plan, i);
      continue;
    }
    PlanRow row;
    const int own = plan.next_prediction();
    const auto grid = [&](int step) { return step == i ? own : plan.prediction_at_grid(step); };
    Step step = make_step(level, i, std::min(order, i + 1), false, bh1);
    row.a = step.a;
    row.a_minus_1 = step.a_minus_1;
    for (std::size_t k = 0; k < step.weight.size(); ++k)
      row.b.push_back({grid(i - static_cast<int>(k)), step.weight[k]});
    // A step of infinite length was of first order, predicted and corrected alike.
    if (i > start && std::isfinite(level[i].lambda - level[i - 1].lambda)) {
      const Step corrector = make_step(level, i - 1, std::min(order, i), true, bh1);
      row.b.push_back({own, step.a * corrector.made});
      for (std::size_t k = 0; k < corrector.weight.size(); ++k)
        row.b.push_back({grid(i - 1 - static_cast<int>(k)), step.a * (corrector.weight[k] - made.weight[k])});
    }
    made = std::move(step);
    row.completes_step = true;
    plan.evaluate_at_grid(i, std::move(row));
  }
}

}  // namespace pfc::plan
