// interpolate on the CPU: coefficients once per sample in float64, elements in float32 (float64 for float64 data).
#pragma once

#include "../core/interpolate.hpp"
#include "normals.hpp"

namespace pfc::cpu {
namespace {

template <class S>
inline void interpolate_range(const InterpolateArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kPiece = 512;
  alignas(64) float drawn[kPiece];
  int64_t i = begin;
  while (i < end) {
    const int64_t sample = i / args.sample;
    int64_t stop = (sample + 1) * args.sample;
    if (stop > end) stop = end;
    const double t = args.t_is_double ? static_cast<const double*>(args.t)[sample]
                                      : static_cast<double>(static_cast<const float*>(args.t)[sample]);
    const auto c = interpolate_coefficients<S>(args.path, args.prediction, t);
    while (i < stop) {
      const int64_t piece_end = i + kPiece < stop ? i + kPiece : stop;
      const int64_t piece = i;
      const void* noise = args.noise;
      DType noise_dtype = args.dtype;
      int64_t shift = 0;
      if (noise == nullptr) {
        fill_normals(args.seeds, args.sample, args.stream, args.draw, i, piece_end, drawn);
        // Half-precision data takes its noise at float32's precision: the results are rounded once, at the end.
        noise = drawn;
        noise_dtype = DType::kFloat32;
        shift = piece;
      }
      using W = Wide<S>;
      for (; i + W::kSize <= piece_end; i += W::kSize) {
        W data, x0, point, target;
        for (int u = 0; u < W::kUnroll; ++u) {
          data.part[u] = load_native<S>(args.data, args.dtype, i + u * W::kLanes);
          x0.part[u] = load_native<S>(noise, noise_dtype, i - shift + u * W::kLanes);
        }
        interpolate_element<W, S>(c, data, x0, point, target);
        for (int u = 0; u < W::kUnroll; ++u) {
          store_native<S>(args.point, args.dtype, i + u * W::kLanes, point.part[u], false);
          store_native<S>(args.target, args.dtype, i + u * W::kLanes, target.part[u], false);
        }
      }
      for (; i < piece_end; ++i) {
        S point, target;
        interpolate_element<S, S>(c, load_one<S>(args.data, args.dtype, i), load_one<S>(noise, noise_dtype, i - shift),
                                  point, target);
        store_one<S>(args.point, args.dtype, i, point);
        store_one<S>(args.target, args.dtype, i, target);
      }
    }
  }
}

inline void interpolate(const InterpolateArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat64)
    interpolate_range<double>(args, begin, end);
  else
    interpolate_range<float>(args, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
