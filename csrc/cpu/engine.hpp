// The engines' faces: a fused network on samples, and a whole plan over it. One set for each instruction set, reached through
// kernels<EngineKernels>(). Splitting samples among threads never changes a bit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "../core/adaptive_network.hpp"
#include "../core/divergence.hpp"
#include "../core/trajectory.hpp"
#include "adaptive.hpp"
#include "combine.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

struct EngineKernels {
  // Samples begin to end.
  void (*network)(const NetworkArgs&, int64_t begin, int64_t end);
  // What the times of rows begin to end add to layer 0: [rows][padded width of layer 0], of the network's dtype.
  void (*time_prefixes)(const TrajectoryArgs&, void* prefixes, int64_t begin, int64_t end);
  // Samples begin to end, through every row.
  void (*trajectory)(const TrajectoryArgs&, const CombineKernels&, const void* prefixes, int64_t begin, int64_t end);
  // The network with the trace of its Jacobian, and the trajectory with the change of the log-density.
  void (*divergence)(const DivergenceArgs&, int64_t begin, int64_t end);
  void (*log_density)(const LogDensityArgs&, const CombineKernels&, const void* prefixes, int64_t begin, int64_t end);
  // Adaptive solves of the samples that `next` counts off, up to `most` at a time, until there are none left.
  void (*network_solve)(const NetworkSolveArgs&, const AdaptiveKernels&, std::atomic<int64_t>& next, int64_t most);

  static const EngineKernels baseline, avx2, avx512;
};

// At least so many bytes, on a cache line, of the calling thread's own; what was there before is lost. Kept until the thread
// ends: a call allocates nothing once a thread has run one of its size.
void* thread_scratch(std::size_t bytes);

}  // namespace pfc::cpu
