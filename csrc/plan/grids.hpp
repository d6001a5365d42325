// Time grids of n steps: n + 1 increasing times from 0 to 1.
#pragma once

#include <vector>

namespace pfc::plan {

std::vector<double> uniform_grid(int steps);

// Static shift s > 0 of the noise level 1 - t: s (1 - t) / (1 + (s - 1)(1 - t)) (Esser et al. 2024, eq. 23). s > 1
// spends more steps near the noise.
std::vector<double> shift_grid(const std::vector<double>& times, double shift);

}  // namespace pfc::plan
