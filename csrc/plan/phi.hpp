// The functions of exponential integrators: phi_1(z) = (e^z - 1)/z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z (Hochbruck &
// Ostermann 2010, eq. 2.10). By their series near 0, where the recursion cancels.
#pragma once

#include <cmath>

namespace pfc::plan {

inline double phi(int k, double z) {
  if (std::fabs(z) < 1.0) {
    double term = 1.0;
    for (int j = 2; j <= k; ++j) term /= j;  // 1 / k!
    double sum = 0.0;
    for (int j = 0; j < 24; ++j) {
      sum += term;
      term *= z / (j + k + 1);
    }
    return sum;
  }
  double value = std::expm1(z) / z;
  double factorial = 1.0;
  for (int j = 1; j < k; ++j) {
    factorial *= j;
    value = (value - 1.0 / factorial) / z;
  }
  return value;
}

}  // namespace pfc::plan
