// guide on the CPU: inner products of a sample's branches, chunk by chunk, and its weights from them. core/guide.hpp says in
// which order; widened to float64, a chunk stays in the first-level cache while its products are taken.
#pragma once

#include "../core/guide.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

// count elements from element i on, as float64 by way of S.
template <class S>
PFC_INLINE void widen(const void* base, DType dtype, int64_t i, int count, double* to) {
  using W = Wide<S>;
  using Doubles = typename NativeOf<double, W::kLanes>::type;
  int k = 0;
  for (; k + W::kLanes <= count; k += W::kLanes) {
    const Doubles wide = __builtin_convertvector(load_native<S>(base, dtype, i + k), Doubles);
    __builtin_memcpy(to + k, &wide, sizeof(wide));
  }
  for (; k < count; ++k) to[k] = static_cast<double>(load_one<S>(base, dtype, i + k));
}

// The sum of a chunk from those of its lanes. Lanes that hold nothing but zeros are left out, which changes no bit.
PFC_INLINE double lane_sum(const double* lane, int lanes) {
  alignas(64) double group[kGuideGroups];
  if (lanes == kGuideLanes) {  // a known count is vectorised
    for (int g = 0; g < kGuideGroups; ++g)
      group[g] = (lane[4 * g] + lane[4 * g + 2]) + (lane[4 * g + 1] + lane[4 * g + 3]);
    for (int g = 0; g < 16; ++g) group[g] = group[g] + group[g + 16];
    for (int g = 0; g < 8; ++g) group[g] = group[g] + group[g + 8];
    return guide_tree<8>([&group](int i) { return group[i]; });
  }
  int groups = lanes / 4;
  for (int g = 0; g < groups; ++g) group[g] = (lane[4 * g] + lane[4 * g + 2]) + (lane[4 * g + 1] + lane[4 * g + 3]);
  for (groups /= 2; groups > 0; groups /= 2)
    for (int g = 0; g < groups; ++g) group[g] = group[g] + group[g + groups];
  return group[0];
}

// The sum of a, or of a b, over a chunk's steps of kGuideLanes elements, zeros after the last.
template <bool kProduct>
PFC_INLINE double chunk_sum(const double* a, const double* b, int steps, int lanes) {
  using W = Wide<double>;
  alignas(64) double lane[kGuideLanes];
  for (int l = 0; l < lanes; l += W::kSize) {
    W sum;
    for (int step = 0; step < steps; ++step) {
      const int at = step * kGuideLanes + l;
      for (int u = 0; u < W::kUnroll; ++u) {
        auto value = load_bytes<typename W::Native>(a + at + u * W::kLanes);
        if constexpr (kProduct) value = value * load_bytes<typename W::Native>(b + at + u * W::kLanes);
        sum.part[u] = sum.part[u] + value;
      }
    }
    for (int u = 0; u < W::kUnroll; ++u) store_bytes(lane + l + u * W::kLanes, sum.part[u], false);
  }
  return lane_sum(lane, lanes);
}

// A native vector of float64 from memory of type T.
template <class T>
PFC_INLINE Wide<double>::Native doubles(const void* base, int64_t i) {
  using From = typename NativeOf<T, Wide<double>::kLanes>::type;
  return __builtin_convertvector(load_bytes<From>(static_cast<const T*>(base) + i), Wide<double>::Native);
}

// The usual case, a whole chunk of two branches of the state's type: all sums in one pass, in registers.
template <class S, int kVectors>
PFC_INLINE void whole_chunk(const GuideArgs& args, int64_t begin, bool moves, double* sum) {
  using V = Wide<double>::Native;
  constexpr int kStep = Wide<double>::kLanes;
  constexpr int kSums = guide_sums(kVectors);
  alignas(64) double lane[kSums][kGuideLanes];
  S* momentum = static_cast<S*>(args.momentum);
  const double q = args.rule.q, beta = args.rule.beta;
  for (int l = 0; l < kGuideLanes; l += kStep) {
    V total[kSums] = {};
    for (int step = 0; step < kGuideChunk / kGuideLanes; ++step) {
      const int64_t at = begin + step * kGuideLanes + l;
      const V c = doubles<S>(args.branch[0], at);
      V vector[kVectors];
      vector[0] = doubles<S>(args.branch[1], at);
      vector[1] = c - vector[0];
      if (momentum != nullptr) {
        if (moves) {
          const V moved = q * vector[1] + beta * doubles<S>(momentum, at);
          store_bytes(momentum + at, __builtin_convertvector(moved, typename NativeOf<S, kStep>::type), false);
        }
        vector[0] = c;
        vector[1] = doubles<S>(momentum, at);
      }
      if constexpr (kVectors > 2) vector[2] = doubles<S>(args.point, at);
      int s = 0;
      for (int a = 0; a < kVectors; ++a, ++s) total[s] = total[s] + vector[a];
      for (int a = 0; a < kVectors; ++a)
        for (int b = a; b < kVectors; ++b, ++s) total[s] = total[s] + vector[a] * vector[b];
    }
    for (int s = 0; s < kSums; ++s) store_bytes(lane[s] + l, total[s], false);
  }
  for (int s = 0; s < kSums; ++s) sum[s] = lane_sum(lane[s], kGuideLanes);
}

template <class S>
inline void guide_chunk(const GuideArgs& args, int64_t chunk) {
  const int64_t chunks = guide_chunks(args.sample);
  const int64_t sample = chunk / chunks;
  const int64_t first = (chunk - sample * chunks) * kGuideChunk;
  const int64_t begin = sample * args.sample + first;
  const int count = static_cast<int>(args.sample - first < kGuideChunk ? args.sample - first : kGuideChunk);
  const int conditions = args.branches - 1, vectors = guide_vectors(args);
  const bool moves = args.momentum != nullptr && guide_moves<S>(args, sample);
  double* sum = args.partial + chunk * guide_sums(vectors);
  if (count == kGuideChunk && conditions == 1 && args.out_dtype == args.state_dtype)
    return vectors == 2 ? whole_chunk<S, 2>(args, begin, moves, sum) : whole_chunk<S, 3>(args, begin, moves, sum);

  alignas(64) double vector[kMaxGuideVectors][kGuideChunk];
  widen<S>(args.branch[conditions], args.out_dtype, begin, count, vector[0]);
  for (int j = 0; j < conditions; ++j) {
    double* d = vector[j + 1];
    widen<S>(args.branch[j], args.out_dtype, begin, count, d);
    if (args.momentum == nullptr) {
      for (int k = 0; k < count; ++k) d[k] = d[k] - vector[0][k];
      continue;
    }
    S* m = static_cast<S*>(args.momentum) + begin;
    for (int k = 0; k < count; ++k) {
      const double c = d[k];
      if (moves) m[k] = static_cast<S>(guide_momentum(args.rule, c - vector[0][k], static_cast<double>(m[k])));
      d[k] = static_cast<double>(m[k]);
      vector[0][k] = c;
    }
  }
  if (args.point != nullptr) widen<S>(args.point, args.state_dtype, begin, count, vector[vectors - 1]);

  const int steps = (count + kGuideLanes - 1) / kGuideLanes;
  int lanes = 4;
  while (lanes < count && lanes < kGuideLanes) lanes *= 2;
  // As far as chunk_sum reads.
  const int read = lanes < Wide<double>::kSize ? Wide<double>::kSize : lanes;
  for (int i = 0; i < vectors; ++i)
    for (int k = count; k < (steps - 1) * kGuideLanes + read; ++k) vector[i][k] = 0.0;
  for (int i = 0; i < vectors; ++i) *sum++ = chunk_sum<false>(vector[i], nullptr, steps, lanes);
  for (int i = 0; i < vectors; ++i)
    for (int j = i; j < vectors; ++j) *sum++ = chunk_sum<true>(vector[i], vector[j], steps, lanes);
}

// Chunks begin .. end of the batch.
inline void guide_partial(const GuideArgs& args, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk)
    args.state_dtype == DType::kFloat64 ? guide_chunk<double>(args, chunk) : guide_chunk<float>(args, chunk);
}

// Samples begin .. end, when all chunks are done.
inline void guide_finish(const GuideArgs& args, int64_t begin, int64_t end) {
  const int64_t chunks = guide_chunks(args.sample);
  const int count = guide_sums(guide_vectors(args));
  int width = 1;
  while (width < chunks && width < kGuideStripes) width *= 2;
  for (int64_t sample = begin; sample < end; ++sample) {
    const double* partial = args.partial + sample * chunks * count;
    double sums[kMaxGuideSums];
    double work[kMaxGuideRows];
    for (int s = 0; s < count; ++s) {
      // Stripes without a chunk hold zero, and are left out.
      double stripe[kGuideStripes];
      for (int c = 0; c < width; ++c) stripe[c] = 0.0;
      for (int64_t c = 0; c < chunks; ++c)
        stripe[c % kGuideStripes] = stripe[c % kGuideStripes] + partial[c * count + s];
      for (int half = width / 2; half > 0; half /= 2)
        for (int c = 0; c < half; ++c) stripe[c] = stripe[c] + stripe[c + half];
      sums[s] = stripe[0];
    }
    if (args.state_dtype == DType::kFloat64)
      guide_sample<double>(args, sample, sums, work);
    else
      guide_sample<float>(args, sample, sums, work);
  }
}

}  // namespace
}  // namespace pfc::cpu
