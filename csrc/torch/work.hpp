// How much of a fused network's work is worth a thread of its own, on the CPU.
#pragma once

#include "../core/network.hpp"
#include "tensors.hpp"

namespace pfc::ops {

inline void check_exact(int64_t precision) {
  PFC_CHECK(precision == 0, "precision is ", precision,
            "; on the CPU only 0 (exact) is allowed, 1 (tf32) and 2 (bf16) are for CUDA");
}

// Waking a second thread takes some microseconds. A core makes about fifty multiplications and additions in a nanosecond in
// float32; an evaluation costs something beside them.
inline int64_t samples_worth_a_thread(const Network& net, int64_t evaluations) {
  constexpr double kWorth = 1.0e6, kBeside = 256.0;
  double products = kBeside;
  for (int l = 0; l < net.layers; ++l)
    products += static_cast<double>(l ? net.layer[l].in : net.dim) * static_cast<double>(net.layer[l].out);
  const double sample = products * static_cast<double>(evaluations > 0 ? evaluations : 1);
  return 1 + static_cast<int64_t>(kWorth / sample);
}

template <class Range>
void in_samples(int64_t count, int64_t grain, const Range& range) {
  if (count <= grain) return range(0, count);
  torch::stable::parallel_for(0, count, grain, range);
}

}  // namespace pfc::ops
