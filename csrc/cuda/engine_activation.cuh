// Activations of a pack.
#pragma once

#include <cmath>

#include "../core/network.hpp"
#include "pack.hpp"

namespace pfc::cuda {

template <class S>
PFC_HD S activate_one(Activation kind, S parameter, S z) {
  switch (kind) {
    case Activation::kReLU: return z > S(0) ? z : S(0);
    case Activation::kSiLU: return z / (S(1) + exp(-z));
    default: return z;
  }
}

template <class S, int N>
PFC_HD Pack<S, N> activate(Activation kind, S parameter, Pack<S, N> z) {
  PFC_FULL_UNROLL
  for (int e = 0; e < N; ++e) z.v[e] = activate_one<S>(kind, parameter, z.v[e]);
  return z;
}

}  // namespace pfc::cuda
