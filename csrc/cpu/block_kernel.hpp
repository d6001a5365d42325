// Norms with modulation and gated residuals on the CPU: how a row walks memory. The arithmetic is core/block.hpp.
//
// A row is read from memory once. Where it does not lie there as it is computed with (half precision, or the sum of a
// residual), it stays in `scratch` for the passes that follow, which is to say in the first-level cache.
#pragma once

#include "../core/block.hpp"
#include "activation.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

// Where the numbers of a row and of its sample begin, in elements.
struct RowPlace {
  int64_t first, gate, shift, scale;
};

PFC_INLINE RowPlace row_place(const NormArgs& args, int64_t row) {
  const int64_t sample = row / args.tokens;
  return {row * args.width, sample * args.gate.stride, sample * args.shift.stride, sample * args.scale.stride};
}

// Memory of core/block.hpp: a native vector from element i of the row on, or element i alone.
template <class S, DType kDType, class V>
struct RowMemory {
  const NormArgs& args;
  const RowPlace& at;
  int64_t i;

  PFC_INLINE V load(const void* base, int64_t place) const {
    if constexpr (sizeof(V) == sizeof(S))
      return load_one<S>(base, kDType, place);
    else
      return load_native<S>(base, kDType, place);
  }
  PFC_INLINE V x() const { return load(args.x, at.first + i); }
  PFC_INLINE V y() const { return load(args.y, at.first + i); }
  PFC_INLINE V y_bias() const { return load(args.y_bias, i); }
  PFC_INLINE V weight() const { return load(args.weight, i); }
  PFC_INLINE V bias() const { return load(args.bias, i); }
  PFC_INLINE V gate() const { return load(args.gate.data, at.gate + i); }
  PFC_INLINE V shift() const { return load(args.shift.data, at.shift + i); }
  PFC_INLINE V scale() const { return load(args.scale.data, at.scale + i); }
  PFC_INLINE void store(void* base, const V& value, bool streaming) const {
    if constexpr (sizeof(V) == sizeof(S))
      store_one<S>(base, kDType, at.first + i, value);
    else
      store_native<S>(base, kDType, at.first + i, value, streaming);
  }
};

// What memory of kDType keeps of a value.
template <class S, DType kDType, class V>
PFC_INLINE V as_stored(const V& value) {
  if constexpr (kDType == DType::kFloat32 || kDType == DType::kFloat64) {
    return value;
  } else if constexpr (sizeof(V) == sizeof(S)) {
    uint16_t half;
    store_one<S>(&half, kDType, 0, value);
    return load_one<S>(&half, kDType, 0);
  } else {
    typename Wide<S>::Short half;
    store_native<S>(&half, kDType, 0, value, false);
    return load_native<S>(&half, kDType, 0);
  }
}

// Calls part(V of a native vector, i) or part(S, i) for all elements of a row, the argument telling how many it is for.
template <class S, class Part>
PFC_INLINE void over_row(int64_t width, const Part& part) {
  constexpr int kLanes = Wide<S>::kLanes;
  int64_t i = 0;
  for (; i + Wide<S>::kSize <= width; i += Wide<S>::kSize) {
#pragma GCC unroll 4
    for (int u = 0; u < Wide<S>::kUnroll; ++u) part(Native<S>{}, i + u * kLanes);
  }
  for (; i + kLanes <= width; i += kLanes) part(Native<S>{}, i);
  for (; i < width; ++i) part(S{}, i);
}

// The sums of core/block.hpp over a row: part(V, i, values) gives what is to be added for the elements from i on. The lanes
// are gone through in sweeps, as many at a time as registers hold.
template <class S, int kSums, class Part>
PFC_INLINE void row_sums(int64_t width, const Part& part, S* total) {
  constexpr int kLanes = Wide<S>::kLanes;
  constexpr int kSweep = PFC_NATIVE_BYTES == 64 ? 8 : 4;
  static_assert(kNormLanes % (kSweep * kLanes) == 0);
  alignas(64) S lane[kSums][kNormLanes];
  const int64_t whole = width / kNormLanes * kNormLanes;
  for (int l = 0; l < kNormLanes; l += kSweep * kLanes) {
    Native<S> sum[kSums][kSweep] = {};
    for (int64_t i = l; i < whole; i += kNormLanes) {
#pragma GCC unroll 8
      for (int u = 0; u < kSweep; ++u) {
        Native<S> value[kSums];
        part(Native<S>{}, i + u * kLanes, value);
        for (int s = 0; s < kSums; ++s) sum[s][u] = sum[s][u] + value[s];
      }
    }
    for (int s = 0; s < kSums; ++s)
#pragma GCC unroll 8
      for (int u = 0; u < kSweep; ++u) store_bytes(lane[s] + l + u * kLanes, sum[s][u], false);
  }
  int64_t i = whole;
  int l = 0;
  for (; i + kLanes <= width; i += kLanes, l += kLanes) {
    Native<S> value[kSums];
    part(Native<S>{}, i, value);
    for (int s = 0; s < kSums; ++s) store_bytes(lane[s] + l, load_bytes<Native<S>>(lane[s] + l) + value[s], false);
  }
  for (; i < width; ++i, ++l) {
    S value[kSums];
    part(S{}, i, value);
    for (int s = 0; s < kSums; ++s) lane[s][l] = lane[s][l] + value[s];
  }
  for (int s = 0; s < kSums; ++s) {
    S* const sums = lane[s];
    for (int k = 0; k < 64; ++k) sums[k] = sums[k] + sums[k + 64];
    for (int k = 0; k < 32; ++k) sums[k] = sums[k] + sums[k + 32];
    for (int k = 0; k < 16; ++k) sums[k] = sums[k] + sums[k + 16];
    for (int k = 0; k < 8; ++k) sums[k] = sums[k] + sums[k + 8];
    for (int k = 0; k < 4; ++k) sums[k] = sums[k] + sums[k + 4];
    total[s] = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }
}

template <class V, class S>
PFC_INLINE V from_row(const S* values, int64_t i) {
  return load_bytes<V>(values + i);
}

template <class S, DType kDType, bool kResidual>
inline void norm_rows(const NormArgs& given, S* scratch, int64_t begin, int64_t end) {
  // A copy whose address stays here: the stores below cannot change it, so its pointers stay in registers.
  const NormArgs args = given;
  constexpr bool kAsStored = kDType == DType::kFloat64 || kDType == DType::kFloat32;
  constexpr bool kDirect = kAsStored && !kResidual;
  const bool streams_state = args.streaming && args.x_out != args.x;  // what has just been read is in the cache
  for (int64_t row = begin; row < end; ++row) {
    const RowPlace at = row_place(args, row);
    // The row's elements, once: written where they are to go, and kept.
    const auto take = [&](auto like, int64_t i) __attribute__((always_inline)) {
      using V = decltype(like);
      const RowMemory<S, kDType, V> memory{args, at, i};
      V x = memory.x();
      if constexpr (kResidual) {
        x = residual_element(args, x, memory);
        memory.store(args.x_out, x, streams_state);
        if (args.out) x = as_stored<S, kDType>(x);
      }
      if constexpr (!kDirect)
        if (args.out) store_bytes(scratch + i, x, false);
      return x;
    };
    if (!args.out) {
      over_row<S>(args.width, take);
      continue;
    }
    const S* values = kDirect ? static_cast<const S*>(args.x) + at.first : scratch;
    S center = S(0), sums[2] = {S(0), S(0)};
    if (args.rms) {
      row_sums<S, 1>(
          args.width,
          [&](auto like, int64_t i, auto* value) __attribute__((always_inline)) {
            const auto x = take(like, i);
            value[0] = x * x;
          },
          sums + 1);
    } else {
      row_sums<S, 1>(
          args.width,
          [&](auto like, int64_t i, auto* value) __attribute__((always_inline)) { value[0] = take(like, i); }, sums);
      center = row_mean(sums[0], args.width);
      row_sums<S, 2>(
          args.width,
          [&](auto like, int64_t i, auto* value) __attribute__((always_inline)) {
            const auto d = from_row<decltype(like)>(values, i) - center;
            value[0] = d;
            value[1] = d * d;
          },
          sums);
    }
    const RowNorm<S> norm = row_norm(args, center, sums[0], sums[1]);
    over_row<S>(args.width, [&](auto like, int64_t i) __attribute__((always_inline)) {
      using V = decltype(like);
      const RowMemory<S, kDType, V> memory{args, at, i};
      memory.store(args.out, norm_element(args, norm, from_row<V>(values, i), memory), args.streaming);
    });
  }
  if (args.streaming) finish_streaming();
}

template <class S, DType kDType>
inline void norm_of(const NormArgs& args, void* scratch, int64_t begin, int64_t end) {
  S* const row = static_cast<S*>(scratch);
  args.y ? norm_rows<S, kDType, true>(args, row, begin, end) : norm_rows<S, kDType, false>(args, row, begin, end);
}

inline void block_norm(const NormArgs& args, void* scratch, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::kFloat32: return norm_of<float, DType::kFloat32>(args, scratch, begin, end);
    case DType::kFloat64: return norm_of<double, DType::kFloat64>(args, scratch, begin, end);
    case DType::kBFloat16: return norm_of<float, DType::kBFloat16>(args, scratch, begin, end);
    default: return norm_of<float, DType::kFloat16>(args, scratch, begin, end);
  }
}

}  // namespace
}  // namespace pfc::cpu
