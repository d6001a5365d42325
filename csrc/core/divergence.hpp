// What the kernels of divergences are given: the network and the trace of its Jacobian at one point per sample, and a whole
// plan over both. The log-density along dx/dt = u changes by -div u, so the integral of the divergence takes the plan's rows
// with the velocity; csrc/cpu/divergence_kernel.hpp says how the Jacobian's products are made.
#pragma once

#include "adaptive_network.hpp"
#include "trajectory.hpp"

namespace pfc {

// Tangents: the unit ones, whose traces add up to one exact trace a sample, or `count` probes v a sample, of which each
// gives an estimate v . (J v).
struct Probes {
  const void* values = nullptr;  // [count][batch][dim] of the network's dtype; null for unit tangents
  int64_t count = 0;

  PFC_HD int64_t estimates() const { return values ? count : 1; }
};

struct DivergenceArgs {
  NetworkArgs at;
  Probes probes;
  double* traces = nullptr;  // [batch][estimates]
};

// Of `path`: network, rows, states, times, table and conditions; every row that evaluates has one branch, a = 1 and no noise.
struct LogDensityArgs {
  TrajectoryArgs path;
  Probes probes;
  double* change = nullptr;  // [batch][estimates]: the integral of the divergence over the plan's times
};

// Of `at`: what an adaptive solve of the network has, but its states are [x, one integral of the divergence for each estimate]
// in float64, whatever the network's dtype is. The steps are those of x: solve.norm is its elements.
struct DensitySolveArgs {
  NetworkSolveArgs at;
  Probes probes;
};

}  // namespace pfc
