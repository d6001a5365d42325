// interpolate on the CPU: coefficients once per sample in float64, elements in float32 (float64 for float64 data).
#pragma once

#include "../core/interpolate.hpp"
#include "normals.hpp"

namespace pfc::cpu {
namespace {

template <class S>
inline void interpolate_range(const InterpolateArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kChunk = 512;
  alignas(64) float drawn[kChunk];
  using W = Wide<S>;
  for (int64_t i = begin; i < end;) {
    const int64_t chunk = i;
    const int64_t chunk_end = end > i + kChunk ? i + kChunk : end;
    // Noise for a chunk of the batch, whatever the samples are: two-dimensional ones are vectorised too. Half-precision
    // data takes it at float32's precision: the results are rounded once, at the end.
    const bool draws = args.noise == nullptr;
    if (draws) fill_normals(args.seeds, args.sample, args.stream, args.draw, i, chunk_end, drawn);
    const void* noise = draws ? drawn : args.noise;
    const DType noise_dtype = draws ? DType::kFloat32 : args.dtype;
    const int64_t shift = draws ? chunk : 0;
    while (i < chunk_end) {
      const int64_t sample = i / args.sample;
      const int64_t last = (sample + 1) * args.sample;
      const int64_t stop = last < chunk_end ? last : chunk_end;
      const double t = args.t_is_double ? static_cast<const double*>(args.t)[sample]
                                        : static_cast<double>(static_cast<const float*>(args.t)[sample]);
      const auto c = interpolate_coefficients<S>(args.path, args.prediction, t);
      for (; i + W::kSize <= stop; i += W::kSize) {
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
      for (; i < stop; ++i) {
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
