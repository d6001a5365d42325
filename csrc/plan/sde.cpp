// Solvers that draw noise in every step.
//   euler_maruyama    the interpolant SDE dx = (v + w/2 score) dt + sqrt(w) dW (Albergo et al. 2023; Ma et al. 2024, where
//                     `diffusion` is w/2), for any w(t) >= 0
//   stochastic_heun   the same with f = v + w/2 score: x <- x + g sqrt(h) xi, y = x + h f0, then x <- x + h (f0 + f1)/2, with
//                     g = (sqrt w + sqrt w')/2 and one xi for both stages; order 2 in mean and variance
//   euler_ancestral   a DDIM step past the next time, to sigma_d = sigma' (1 + eta (sigma'/sigma - 1)), and back by noise
//   consistency       x' = alpha' D + sigma' xi (Song et al. 2023, algorithm 1; also the sampler of sCM)
#include <cmath>
#include <stdexcept>

#include "level.hpp"
#include "solvers.hpp"

namespace pfc::plan {

namespace {

double diffusion_at(const Builder& plan, const SolverOptions& options, double t) {
  const double w = options.diffusion(t);
  if (!(std::isfinite(w) && w >= 0.0))
    throw std::invalid_argument(
        "diffusion: w is " + std::to_string(w) + " " + plan.where(t) +
        "; it must be finite and not negative: begin or end the grid inside (0, 1) where it is not");
  return w;
}

// A row that evaluates the drift v + w/2 score, a mixture of data and noise; the velocity alone where w = 0, also at sigma = 0.
void evaluate_drift(Builder& plan, double t, int step, PlanRow row, double w) {
  const PathPoint c = plan.at(t);
  if (w == 0.0)
    plan.evaluate_at(t, step, std::move(row), Prediction::kVelocity);
  else
    plan.evaluate_mixture_at(t, step, std::move(row), {c.dalpha, c.dsigma - 0.5 * w / c.sigma});
}

}  // namespace

std::function<double(double)> named_diffusion(const HostPath& path, const std::string& name) {
  constexpr double kPi = 2.0 * exact::kHalfPi;
  if (name == "constant") return [](double) { return 1.0; };
  if (name == "sigma") return [path](double t) { return evaluate(path, t).sigma; };
  if (name == "sigma/alpha") return [path](double t) { return level_of(path, t).rho; };
  if (name == "cosine") return [](double t) { return 0.25 * std::pow(std::cos(kPi * t) + 1.0, 2); };
  // sin(pi t) is not 0 at the rounded pi, and w must be 0 at t = 1, where the score is infinite.
  if (name == "sine") return [](double t) { return t == 1.0 ? 0.0 : std::pow(std::sin(kPi * t), 2); };
  throw std::invalid_argument("diffusion: unknown name '" + name +
                              "', allowed are constant, sigma, sigma/alpha, cosine, sine, or a function of t");
}

void fill_euler_maruyama(Builder& plan, const Solver&, const SolverOptions& options) {
  for (int step = 0; step < plan.steps(); ++step) {
    const double t = plan.times()[step];
    const double h = plan.times()[step + 1] - t;
    const double w = diffusion_at(plan, options, t);
    PlanRow row;
    row.completes_step = true;
    row.b.push_back({plan.next_prediction(), h});
    if (w > 0.0) row.s.push_back({step, std::sqrt(w * h)});
    evaluate_drift(plan, t, step, std::move(row), w);
  }
}

void fill_stochastic_heun(Builder& plan, const Solver&, const SolverOptions& options) {
  for (int step = 0; step < plan.steps(); ++step) {
    const double t = plan.times()[step];
    const double end = plan.times()[step + 1];
    const double h = end - t;
    const double w0 = diffusion_at(plan, options, t);
    const int first = plan.next_prediction();
    PlanRow row;
    if (end == 1.0 && !options.full_last_step) {
      row.completes_step = true;
      row.b.push_back({first, h});
      if (w0 > 0.0) row.s.push_back({step, std::sqrt(w0 * h)});
      evaluate_drift(plan, t, step, std::move(row), w0);
      continue;
    }
    const double w1 = diffusion_at(plan, options, end);
    const double g = 0.5 * (std::sqrt(w0) + std::sqrt(w1)) * std::sqrt(h);
    row.e.push_back({first, h});
    if (g > 0.0) row.s.push_back({step, g});
    evaluate_drift(plan, t, step, std::move(row), w0);
    PlanRow last;
    last.completes_step = true;
    last.b = {{first, 0.5 * h}, {first + 1, 0.5 * h}};
    evaluate_drift(plan, end, step, std::move(last), w1);
  }
}

void fill_euler_ancestral(Builder& plan, const Solver&, const SolverOptions& options) {
  plan.work_in(Prediction::kData);
  for (int step = 0; step < plan.steps(); ++step) {
    const Level now = level_of(plan.path(), plan.times()[step]);
    const Level next = level_of(plan.path(), plan.times()[step + 1]);
    if (options.eta > 0.0 && next.sigma >= now.sigma)
      throw std::invalid_argument(
          "solver 'euler_ancestral' steps past the next level and back by noise, so sigma must fall: it is " +
          std::to_string(now.sigma) + " at t = " + std::to_string(now.t) + " and " + std::to_string(next.sigma) +
          " at t = " + std::to_string(next.t) + "; use eta=0, or another solver");
    const double sigma_down = next.sigma * (1.0 + options.eta * (next.sigma / now.sigma - 1.0));
    const Level down = next.sigma == 0.0 || options.eta == 0.0
                           ? next
                           : level_of(plan.path(), find_time(plan.path(), next.t, 1.0, -sigma_down,
                                                             [](const Level& level) { return -level.sigma; }));
    const double held = down.sigma / now.sigma;
    const double back = next.alpha / down.alpha;
    const double variance = next.sigma * next.sigma - back * back * down.sigma * down.sigma;
    PlanRow row;
    row.completes_step = true;
    row.set_a(back * held);
    row.b.push_back({plan.next_prediction(), back * (down.alpha - now.alpha * held)});
    if (variance > 0.0 && options.eta > 0.0) row.s.push_back({step, std::sqrt(variance)});
    plan.evaluate_at(now.t, step, std::move(row));
  }
}

void fill_consistency(Builder& plan, const Solver&, const SolverOptions&) {
  plan.work_in(Prediction::kData);
  for (int step = 0; step < plan.steps(); ++step) {
    const PathPoint next = plan.at(plan.times()[step + 1]);
    PlanRow row;
    row.completes_step = true;
    row.set_a(0.0);
    row.b.push_back({plan.next_prediction(), next.alpha});
    if (next.sigma > 0.0) row.s.push_back({step, next.sigma});
    plan.evaluate_at(plan.times()[step], step, std::move(row));
  }
}

}  // namespace pfc::plan
