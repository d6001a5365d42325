// Time grids of n steps: n + 1 increasing times, from 0 (noise) to 1 (data) unless a grid says otherwise. Noise levels are
// written s = 1 - t, as on the linear path, or rho = sigma / alpha of a path.
#pragma once

#include <vector>

#include "host_path.hpp"

namespace pfc::plan {

std::vector<double> uniform_grid(int steps);

// Static shift s > 0 of the noise level 1 - t: s (1 - t) / (1 + (s - 1)(1 - t)) (Esser et al. 2024, eq. 23). s > 1
// spends more steps near the noise.
std::vector<double> shift_grid(const std::vector<double>& times, double shift);

// The times but the last stretched so that the last noise level above 0 is `level` (LTX-Video's shift_terminal):
// 1 - t becomes 1 - t (1 - level) / t_last.
std::vector<double> terminal_grid(const std::vector<double>& times, double level);

// n levels from `most` down to `least`, evenly spaced in their rho-th root (Karras et al. 2022, eq. 5), or in their
// logarithm; as times 1 - level, and 1 at the end.
std::vector<double> karras_grid(int steps, double rho, double least, double most);
std::vector<double> exponential_grid(int steps, double least, double most);
// The same levels read as sigma / alpha of a path; a level that the path does not reach is its highest, at t = 0.
std::vector<double> karras_rho_grid(const HostPath& path, int steps, double rho, double least, double most);

// Quantiles i / n of the beta distribution (Lee et al. 2024), and of the logit-normal distribution (Esser et al. 2024).
std::vector<double> beta_grid(int steps, double a, double b);
std::vector<double> logit_normal_grid(int steps, double mean, double scale);

// `linear_steps` even steps up to `threshold`, then a parabola with the same slope there (Genmo's Mochi; Polyak et al.
// 2024).
std::vector<double> linear_quadratic_grid(int steps, double threshold, int linear_steps);

// 1 - cos(pi i / 2 n) (Du et al. 2024, CosyVoice).
std::vector<double> cosine_grid(int steps);

// Times uniform in lambda = log(alpha / sigma) from lo to hi; if `whole`, they lie between 0 and 1, where lambda is infinite.
std::vector<double> lambda_grid(const HostPath& path, int steps, double lo, double hi, bool whole);

}  // namespace pfc::plan
