// network_divergence and trajectory_log_prob: from tensors to their arguments.
#pragma once

#include "../core/divergence.hpp"
#include "trajectory.hpp"

namespace pfc::ops {

// [count, B, ...] for a state [B, ...], contiguous; `held` keeps it.
inline Probes prepare_probes(const OptionalTensor& given, const Tensor& x, std::vector<Tensor>& held) {
  Probes probes;
  if (!given) return probes;
  const Tensor& values = *given;
  bool fits = values.dim() == x.dim() + 1 && values.size(0) >= 1;
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = values.size(i + 1) == x.size(i);
  PFC_CHECK(fits, "probes must have shape [count, ", shape_of(x), "], got ", shape_of(values));
  PFC_CHECK(values.scalar_type() == x.scalar_type(), "probes has dtype ",
            torch::headeronly::toString(values.scalar_type()), ", the state has ",
            torch::headeronly::toString(x.scalar_type()));
  Place(x).check(values, "probes");
  held.push_back(as_contiguous(values));
  probes.values = held.back().const_data_ptr();
  probes.count = values.size(0);
  return probes;
}

// An evaluation with its products costs as many as there are tangents, and one.
inline int64_t with_products(const Network& net, const Probes& probes) {
  return 1 + (probes.values ? probes.count : net.dim);
}

inline Tensor new_traces(const Tensor& x, const Probes& probes) {
  return torch::stable::new_empty(x, {x.size(0), probes.estimates()}, ScalarType::Double);
}

// What the integral of the divergence cannot follow: states that are scaled, and noise.
inline void check_quadrature(const TrajectoryArgs& args) {
  for (int64_t i = 0; i < args.rows; ++i) {
    const double* rec = args.table + i * record::kWidth;
    PFC_CHECK(rec[record::kA] == 1.0 && rec[record::kAMinus1] == 0.0, "table: row ", i, " scales the state by ",
              rec[record::kA], "; a log-density follows rows that add velocities");
    for (int n = 0; n < kMaxDraws; ++n)
      PFC_CHECK(rec[record::kS + n] == 0.0 && rec[record::kR + n] == 0.0, "table: row ", i,
                " draws noise, and no log-density follows it");
  }
}

}  // namespace pfc::ops
