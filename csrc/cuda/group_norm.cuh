// group_norm_silu on CUDA, in three kernels: the sums of chunks, four threads to one (core/group_norm.hpp has their order); the
// moments of groups, a thread each; the elements, by the walk of a batch whose samples are channels.
// Compiles for the host as well, for the tests.
#pragma once

#include <type_traits>

#include "../core/group_norm.hpp"
#include "engine_activation.cuh"
#include "qk_norm_rope.cuh"

namespace pfc::cuda {

inline constexpr int kChunkThreads = kGroupLanes / kItem;
inline constexpr int kChunksInTile = kThreads / kChunkThreads;

struct GroupNormParams {
  GroupNormArgs args;
  Divider chunks, channels, group_channels;  // of a group; of a sample; of a group
  Walk walk;                                 // a channel of a sample is its "sample"
};

template <class T_, bool kVector_>
struct GroupNormVariant {
  using T = T_;
  using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
  static constexpr bool kVector = kVector_;
  static constexpr int kShared = 2 * kThreads * kItem;
};

template <class T>
PFC_HD double group_pivot(const GroupNormArgs& args, int64_t group) {
  const int64_t size = args.group_size();
  const T* x = static_cast<const T*>(args.x) + group * size;
  return norm_pivot(size, [&](int i) { return decode<double>(x[i]); });
}

// The sums of one chunk, in two parts with a barrier between them.
template <class C>
struct GroupNormSums {
  using T = typename C::T;

  static PFC_HD void add(const GroupNormParams& p, int64_t tile, int thread, double* shared) {
    const GroupNormArgs& args = p.args;
    const int64_t chunk = tile * kChunksInTile + thread / kChunkThreads;
    if (chunk >= args.batch * args.groups * p.chunks.divisor) return;
    const int64_t group = p.chunks.quotient(chunk), size = args.group_size();
    const int64_t first = (chunk - group * p.chunks.divisor) * kNormChunk;
    const int64_t rest = size - first, count = rest < kNormChunk ? rest : kNormChunk;
    const double pivot = group_pivot<T>(args, group);
    Pack<double, kItem> sum{}, squares{};
    for (int i = thread % kChunkThreads * kItem; i < count; i += kGroupLanes) {
      const int here = count - i < kItem ? static_cast<int>(count - i) : kItem;
      const Items<C::kVector, 1> item{{{group * size + first + i, 0, 0, here}}, 1};
      const auto x = item.template load<double, T>(args.x);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e)
        if (e < here) {
          const double d = x.v[e] - pivot;
          sum.v[e] = sum.v[e] + d;
          squares.v[e] = squares.v[e] + d * d;
        }
    }
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) {
      shared[thread * kItem + e] = sum.v[e];
      shared[(kThreads + thread) * kItem + e] = squares.v[e];
    }
  }

  static PFC_HD void finish(const GroupNormParams& p, int64_t tile, int thread, const double* shared) {
    const int64_t chunk = tile * kChunksInTile + thread / kChunkThreads;
    const int which = thread % kChunkThreads;
    if (which > 1 || chunk >= p.args.batch * p.args.groups * p.chunks.divisor) return;
    const double* lane = shared + which * kThreads * kItem + thread / kChunkThreads * kGroupLanes;
    Pack<double, kItem> sum;
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) sum.v[e] = (lane[e] + lane[e + 8]) + (lane[e + 4] + lane[e + 12]);
    p.args.partial[2 * chunk + which] = (sum.v[0] + sum.v[2]) + (sum.v[1] + sum.v[3]);
  }
};

template <class T>
PFC_HD void group_moments(const GroupNormParams& p, int64_t tile, int thread) {
  const GroupNormArgs& args = p.args;
  const int64_t group = tile * kThreads + thread;
  if (group >= args.batch * args.groups) return;
  double sum = 0.0, squares = 0.0;
  for (int64_t at = group * p.chunks.divisor; at < (group + 1) * p.chunks.divisor; ++at) {
    sum = sum + args.partial[2 * at];
    squares = squares + args.partial[2 * at + 1];
  }
  const Moments m = moments_of(group_pivot<T>(args, group), sum, squares, args.group_size(), args.eps);
  args.moments[2 * group] = m.mean;
  args.moments[2 * group + 1] = m.inverse;
}

PFC_HD float device_silu(float z) { return activation::silu<DeviceMath, false>(z).value; }
PFC_HD double device_silu(double z) { return ExactActivation::one(Activation::kSiLU, 0.0, z); }

template <class C>
PFC_HD void group_norm_apply(const GroupNormParams& p, int64_t tile, int thread) {
  using S = typename C::S;
  using T = typename C::T;
  const GroupNormArgs& args = p.args;
  const auto at = items_of<C::kVector, 1>(p.walk, tile, thread);
  if (at.item[0].count == 0) return;
  auto x = at.template load<S, T>(args.x);
  const int64_t row = at.item[0].sample, sample = p.channels.quotient(row), c = row - sample * args.channels;
  const int64_t group = p.group_channels.quotient(row);
  const Moments m{args.moments[2 * group], args.moments[2 * group + 1]};
  const double weight = args.weight ? load_number<double>(args.weight, args.weight_dtype, c) : 1.0;
  const double bias = args.bias ? load_number<double>(args.bias, args.weight_dtype, c) : 0.0;
  const double scale = args.scale ? load_number<double>(args.scale, args.scale_dtype, row) : 0.0;
  const double shift = args.shift ? load_number<double>(args.shift, args.scale_dtype, row) : 0.0;
  const ChannelAffine<S> a = channel_affine<S>(m, weight, bias, scale, shift);
  PFC_FULL_UNROLL
  for (int e = 0; e < kItem; ++e) {
    const S z = (x.v[e] - a.centre) * a.factor + a.offset;
    x.v[e] = args.silu ? device_silu(z) : z;
  }
  at.template store<T>(args.out, x);
}

// ---------------------------------------------------------------------------------------------------------------- host
inline int64_t sums_tiles(const GroupNormParams& p) {
  return (p.args.batch * p.args.groups * p.chunks.divisor + kChunksInTile - 1) / kChunksInTile;
}
inline int64_t moments_tiles(const GroupNormParams& p) {
  return (p.args.batch * p.args.groups + kThreads - 1) / kThreads;
}

template <class T, class Launch>
auto dispatch_group_norm_typed(const GroupNormArgs& args, Launch&& launch) {
  Alignment alignment;
  alignment.add(args.x, args.dtype);
  alignment.add(args.out, args.dtype);
  const bool vector = args.spatial % kItem == 0 && alignment.head(true) == 0;
  GroupNormParams params{
      args, make_divider(args.chunks()), make_divider(args.channels), make_divider(args.channels / args.groups), {}};
  const int64_t rows = args.batch * args.channels;
  params.walk = vector ? vector_walk(rows, args.spatial, true, 0) : ragged_walk(rows, args.spatial, true);
  return vector ? launch(GroupNormVariant<T, true>{}, params) : launch(GroupNormVariant<T, false>{}, params);
}

// launch(variant, params) runs the kernels and returns what the caller wants to know.
template <class Launch>
auto dispatch_group_norm(const GroupNormArgs& args, Launch&& launch) {
  switch (args.dtype) {
    case DType::kFloat32: return dispatch_group_norm_typed<float>(args, launch);
    case DType::kFloat64: return dispatch_group_norm_typed<double>(args, launch);
    case DType::kBFloat16: return dispatch_group_norm_typed<BFloat16>(args, launch);
    default: return dispatch_group_norm_typed<Float16>(args, launch);
  }
}

}  // namespace pfc::cuda
