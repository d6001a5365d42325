// interpolate on CUDA. The path is evaluated in float64 once per sample and block of threads, into shared memory, while
// the data is on its way. Compiles for the host as well, for the tests.
#pragma once

#include <type_traits>

#include "../core/interpolate.hpp"
#include "../core/normal.hpp"
#include "pack.hpp"

namespace pfc::cuda {

struct InterpolateParams {
  Walk walk;  // by samples
  Path path;
  Prediction prediction;
  const void* data;
  const void* noise;
  const int64_t* seeds;
  const void* t;
  void* point;
  void* target;
  uint32_t stream, draw;
  bool t_is_double;
};

// T the data's type, kDrawn whether the noise comes from the seeds, kVector the walk.
template <class T_, bool kDrawn_, bool kVector_>
struct InterpolateVariant {
  using T = T_;
  using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
  static constexpr bool kDrawn = kDrawn_, kVector = kVector_;
  static constexpr int kItems = kVector && !kDrawn && sizeof(S) == 4 ? 2 : 1;
  // A tile has at least one item of each of its samples.
  static constexpr int kMaxSamples = kThreads * kItems;
};

struct SampleRange {
  int64_t first;
  int count;
};

// The samples that have an item in a tile.
PFC_HD SampleRange samples_of(const Walk& w, int64_t tile, int items_per_thread) {
  const int64_t begin = tile * items_per_thread * kThreads;
  int64_t last = begin + items_per_thread * kThreads - 1;
  if (last >= w.items) last = w.items - 1;
  const int64_t first = w.per_sample.quotient(begin);
  return {first, static_cast<int>(w.per_sample.quotient(last) - first) + 1};
}

// What one thread does, in two parts with a barrier between them: coefficients of some samples of the tile; its items.
template <class C>
struct InterpolateThread {
  using S = typename C::S;
  using T = typename C::T;
  using V = Pack<S, C::kItems * kItem>;
  using Coefficients = InterpolateCoefficients<S>;

  const InterpolateParams& p;
  SampleRange samples;
  Items<C::kVector, C::kItems> at;
  V data;
  V noise;

  // Asks for the data at once: it travels while the coefficients are computed.
  PFC_HD InterpolateThread(const InterpolateParams& params, int64_t tile, int thread)
      : p(params),
        samples(samples_of(params.walk, tile, C::kItems)),
        at(items_of<C::kVector, C::kItems>(params.walk, tile, thread)) {
    data = at.template load<S, T>(p.data);
    if constexpr (!C::kDrawn) noise = at.template load<S, T>(p.noise);
  }

  PFC_HD void prepare(int thread, Coefficients* shared) const {
    for (int i = thread; i < samples.count; i += kThreads) {
      const int64_t sample = samples.first + i;
      const double t = p.t_is_double ? static_cast<const double*>(p.t)[sample]
                                     : static_cast<double>(static_cast<const float*>(p.t)[sample]);
      shared[i] = interpolate_coefficients<S>(p.path, p.prediction, t);
    }
  }

  PFC_HD void draw() {
    PFC_FULL_UNROLL
    for (int u = 0; u < C::kItems; ++u) {
      if (at.item[u].count == 0) continue;
      const NormalBlock block = normal_block(static_cast<uint64_t>(p.seeds[at.item[u].sample]), p.stream, p.draw,
                                             static_cast<uint64_t>(at.item[u].block));
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) noise.v[u * kItem + e] = static_cast<S>(block.value[e]);
    }
  }

  PFC_HD void finish(const Coefficients* shared) {
    V point;
    V target;
    PFC_FULL_UNROLL
    for (int u = 0; u < C::kItems; ++u) {
      const Coefficients c = shared[at.item[u].count > 0 ? at.item[u].sample - samples.first : 0];
      PFC_FULL_UNROLL
      for (int e = u * kItem; e < (u + 1) * kItem; ++e)
        interpolate_element<S, S>(c, data.v[e], noise.v[e], point.v[e], target.v[e]);
    }
    at.template store<T>(p.point, point);
    at.template store<T>(p.target, target);
  }
};

// ---------------------------------------------------------------------------------------------------------------- host
template <class T, class Launch>
auto dispatch_interpolate_typed(const InterpolateArgs& args, Launch&& launch) {
  InterpolateParams p{{},     args.path,  args.prediction, args.data,   args.noise, args.seeds,
                      args.t, args.point, args.target,     args.stream, args.draw,  args.t_is_double};
  Alignment alignment;
  for (const void* pointer :
       {args.data, args.noise, static_cast<const void*>(args.point), static_cast<const void*>(args.target)})
    alignment.add(pointer, args.dtype);
  const bool vector = args.sample % kItem == 0 && alignment.head(true) == 0;
  p.walk = vector ? vector_walk(args.batch, args.sample, true, 0) : ragged_walk(args.batch, args.sample, true);
  const auto call = [&]<class C>(C variant) { return launch(variant, p, tiles_of(p.walk, C::kItems)); };
  if (args.noise == nullptr)
    return vector ? call(InterpolateVariant<T, true, true>{}) : call(InterpolateVariant<T, true, false>{});
  return vector ? call(InterpolateVariant<T, false, true>{}) : call(InterpolateVariant<T, false, false>{});
}

// launch(variant, params, tiles) runs a kernel and returns what the caller wants to know.
template <class Launch>
auto dispatch_interpolate(const InterpolateArgs& args, Launch&& launch) {
  switch (args.dtype) {
    case DType::kFloat32: return dispatch_interpolate_typed<float>(args, launch);
    case DType::kFloat64: return dispatch_interpolate_typed<double>(args, launch);
    case DType::kBFloat16: return dispatch_interpolate_typed<BFloat16>(args, launch);
    default: return dispatch_interpolate_typed<Float16>(args, launch);
  }
}

}  // namespace pfc::cuda
