// Adaptive solves of a fused network with the integral of its divergence: the driver of adaptive_network_kernel.hpp on states
// [x, integrals] in float64, whose field is the network at x and its traces, in the network's own dtype. The bits are those of
// the loop over network_divergence and adaptive_.
#pragma once

#include "adaptive_network_kernel.hpp"
#include "divergence_kernel.hpp"

namespace pfc::cpu {
namespace {

template <class S>
class DensityField {
 public:
  using State = double;

  static PFC_INLINE int64_t bytes(const DensitySolveArgs& args, int64_t most) {
    return traces_bytes(args, most) + points_bytes(args, most) + NetworkField<S>::bytes(args.at, most);
  }

  PFC_INLINE DensityField(const DensitySolveArgs& args, const NetworkTile<S>& net, const DivergenceTile<S>& divergence,
                          int64_t most, char* memory)
      : args_(args),
        network_(args.at, net, most, memory + traces_bytes(args, most) + points_bytes(args, most)),
        divergence_(divergence),
        traces_(reinterpret_cast<double*>(memory)),
        points_(reinterpret_cast<S*>(memory + traces_bytes(args, most))) {}

  PFC_INLINE void take(int64_t sample, int64_t place) const { network_.take(sample, place); }
  PFC_INLINE void move(int64_t from, int64_t to) const { network_.move(from, to); }

  inline void evaluate(const double* y, const double* t, const int64_t* home, int64_t n, double* f) const {
    const int64_t dim = args_.at.network.dim, estimates = args_.probes.estimates(), sample = dim + estimates;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < dim; ++j) points_[i * dim + j] = static_cast<S>(y[i * sample + j]);
    divergence_.evaluate(points_, n, network_.times(t, n), network_.conditions(), args_.probes, args_.at.solve.batch,
                         {0, home}, points_, traces_);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < dim; ++j) f[i * sample + j] = static_cast<double>(points_[i * dim + j]);
      for (int64_t k = 0; k < estimates; ++k) f[i * sample + dim + k] = traces_[i * estimates + k];
    }
  }

 private:
  static PFC_INLINE int64_t traces_bytes(const DensitySolveArgs& args, int64_t most) {
    return whole_lines(static_cast<int64_t>(sizeof(double)) * most * args.probes.estimates());
  }
  static PFC_INLINE int64_t points_bytes(const DensitySolveArgs& args, int64_t most) {
    return whole_lines(static_cast<int64_t>(sizeof(S)) * most * args.at.network.dim);
  }

  const DensitySolveArgs& args_;
  const NetworkField<S> network_;
  const DivergenceTile<S>& divergence_;
  double* traces_;
  S* points_;
};

template <class S>
inline void density_solve_range(const DensitySolveArgs& args, const AdaptiveKernels& kernels,
                                std::atomic<int64_t>& next, int64_t most) {
  using Field = DensityField<S>;
  using Tile = NetworkSolveTile<Field>;
  const Network& network = args.at.network;
  const TileShape shape = divergence_shape<S>(network, args.probes, most);
  const int64_t net_bytes = whole_lines(NetworkTile<S>::bytes(network, shape.samples));
  const int64_t divergence_bytes = whole_lines(DivergenceTile<S>::bytes(network, shape));
  const int64_t field_bytes = whole_lines(Field::bytes(args, shape.samples));
  const int64_t bytes = net_bytes + divergence_bytes + field_bytes + Tile::bytes(args.at.solve, shape.samples);
  char* memory = static_cast<char*>(thread_scratch(static_cast<std::size_t>(bytes)));
  const NetworkTile<S> net(network, shape.samples, memory);
  const DivergenceTile<S> divergence(network, shape, memory + net_bytes);
  const Field field(args, net, divergence, shape.samples, memory + net_bytes + divergence_bytes);
  Tile(args.at.solve, field, shape.samples, memory + net_bytes + divergence_bytes + field_bytes).run(kernels, next);
}

inline void density_solve(const DensitySolveArgs& args, const AdaptiveKernels& kernels, std::atomic<int64_t>& next,
                          int64_t most) {
  if (args.at.network.dtype == DType::kFloat64) return density_solve_range<double>(args, kernels, next, most);
  density_solve_range<float>(args, kernels, next, most);
}

}  // namespace
}  // namespace pfc::cpu
