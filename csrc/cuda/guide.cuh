// guide on CUDA: inner products of the samples' branches by chunks, then the weights. A warp takes a chunk, a thread four
// neighbouring lanes of it; sums meet in shared memory, in the order of core/guide.hpp, without atomics. Two kernels: every
// chunk must be done before a sample can be. Compiles for the host as well, for the tests.
#pragma once

#include "../core/guide.hpp"
#include "pack.hpp"

namespace pfc::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kWarps = kThreads / kWarp;                    // chunks of a block
inline constexpr int kGuideItems = kGuideChunk / (kWarp * kItem);  // items of a thread
inline constexpr int kFinishStats = kThreads / kGuideStripes;      // sums that a block works on at once
static_assert(kGuideLanes == kWarp * kItem && kGuideGroups == kWarp);

struct GuideParams {
  GuideArgs args;
  Divider chunks;  // of a sample
  int64_t all;     // chunks of the batch
};

// S the state's type, Out the field's, kVectors how many vectors (2 or 3 of two branches; 0: any number, read again for
// every sum), kVector whether items are aligned.
template <class S_, class Out_, int kVectors_, bool kVector_>
struct GuideVariant {
  using S = S_;
  using Out = Out_;
  static constexpr int kVectors = kVectors_;
  static constexpr bool kVector = kVector_;
  // Sums that a thread makes at once, and of which shared memory holds a block's.
  static constexpr int kAtOnce = kVectors > 0 ? guide_sums(kVectors) : 1;
  static constexpr int kShared = kAtOnce * kWarps * (kWarp + 1);
};

// What one thread does for its chunk, in rounds of kAtOnce sums; each round in two parts with a barrier after each.
template <class C>
struct GuideThread {
  using S = typename C::S;
  using V = Pack<S, kItem>;
  struct Lanes {
    double v[kItem];
  };

  const GuideArgs& args;
  int64_t chunk;  // of the batch; none if it is not below params.all
  int64_t sample;
  int64_t begin;  // the first element of the thread's first item
  int64_t left;   // elements from there to the sample's end
  int warp, lane;
  bool present;

  PFC_HD GuideThread(const GuideParams& p, int64_t tile, int thread)
      : args(p.args), warp(thread / kWarp), lane(thread % kWarp) {
    chunk = tile * kWarps + warp;
    present = chunk < p.all;
    sample = p.chunks.quotient(present ? chunk : 0);
    const int64_t first = ((present ? chunk : 0) - sample * p.chunks.divisor) * kGuideChunk + lane * kItem;
    begin = sample * args.sample + first;
    left = present ? args.sample - first : 0;
  }

  PFC_HD Items<C::kVector, 1> item(int i) const {
    const int64_t rest = left - i * kGuideLanes;
    const int count = rest >= kItem ? kItem : rest > 0 ? static_cast<int>(rest) : 0;
    return {{{begin + i * kGuideLanes, 0, 0, count}}, 1};
  }
  PFC_HD V branch(const Items<C::kVector, 1>& at, int j) const {
    return at.template load<S, typename C::Out>(args.branch[j]);
  }
  PFC_HD double* slot(double* shared, int sum) const { return shared + (sum * kWarps + warp) * (kWarp + 1) + lane; }
  static PFC_HD double joined(const Lanes& l) { return (l.v[0] + l.v[2]) + (l.v[1] + l.v[3]); }

  // Two branches: everything in one pass, the momentum with it.
  PFC_HD void pass(double* shared) const {
    Lanes sums[C::kAtOnce] = {};
    const bool moves = present && args.momentum != nullptr && guide_moves<S>(args, sample);
    PFC_NO_UNROLL
    for (int i = 0; i < kGuideItems; ++i) {
      const auto at = item(i);
      if (at.item[0].count == 0) break;
      const V c = branch(at, 0), u = branch(at, 1);
      V m{}, y{};
      const bool momentum = args.momentum != nullptr;
      if (momentum) m = at.template load<S, S>(args.momentum);
      if constexpr (C::kVectors > 2) y = at.template load<S, S>(args.point);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) {
        double vector[C::kVectors > 2 ? 3 : 2];
        vector[0] = static_cast<double>(u.v[e]);
        vector[1] = static_cast<double>(c.v[e]) - vector[0];
        if (momentum) {
          if (moves) m.v[e] = static_cast<S>(guide_momentum(args.rule, vector[1], static_cast<double>(m.v[e])));
          vector[0] = static_cast<double>(c.v[e]);
          vector[1] = static_cast<double>(m.v[e]);
        }
        if constexpr (C::kVectors > 2) vector[2] = static_cast<double>(y.v[e]);
        int s = 0;
        PFC_FULL_UNROLL
        for (int a = 0; a < C::kVectors; ++a, ++s) sums[s].v[e] = sums[s].v[e] + vector[a];
        PFC_FULL_UNROLL
        for (int a = 0; a < C::kVectors; ++a) PFC_FULL_UNROLL
        for (int b = a; b < C::kVectors; ++b, ++s) sums[s].v[e] = sums[s].v[e] + vector[a] * vector[b];
      }
      if (moves) at.template store<S>(args.momentum, m);
    }
    PFC_FULL_UNROLL
    for (int s = 0; s < C::kAtOnce; ++s) *slot(shared, s) = joined(sums[s]);
  }

  // Vector a of any number of branches: u, a difference, the point.
  PFC_HD Lanes vector(const Items<C::kVector, 1>& at, int a) const {
    const int conditions = args.branches - 1;
    const V x = a > conditions ? at.template load<S, S>(args.point) : branch(at, a == 0 ? conditions : a - 1);
    V u{};
    const bool difference = a > 0 && a <= conditions;
    if (difference) u = branch(at, conditions);
    Lanes r;
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) {
      r.v[e] = static_cast<double>(x.v[e]);
      if (difference) r.v[e] = r.v[e] - static_cast<double>(u.v[e]);
    }
    return r;
  }
  // One sum: of vector a, or of the products of a and b.
  PFC_HD void single(double* shared, int a, int b) const {
    Lanes sum{};
    PFC_NO_UNROLL
    for (int i = 0; i < kGuideItems; ++i) {
      const auto at = item(i);
      if (at.item[0].count == 0) break;
      const Lanes left_side = vector(at, a);
      Lanes right{{1.0, 1.0, 1.0, 1.0}};
      if (b >= 0) right = vector(at, b);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) sum.v[e] = sum.v[e] + left_side.v[e] * right.v[e];
    }
    *slot(shared, 0) = joined(sum);
  }

  // Part one of a round; sum is the number of its first.
  PFC_HD void add(double* shared, int sum) const {
    if constexpr (C::kVectors > 0) {
      pass(shared);
    } else {
      const int vectors = guide_vectors(args);
      int a = sum, b = -1;
      if (sum >= vectors) {
        int rest = sum - vectors;
        a = 0;
        while (rest >= vectors - a) rest -= vectors - a++;
        b = a + rest;
      }
      single(shared, a, b);
    }
  }
  // Part two: one thread for each sum of each warp.
  static PFC_HD void finish(const GuideParams& p, int64_t tile, int thread, const double* shared, int sum) {
    const int warp = thread % kWarps;
    const int which = thread / kWarps;
    const int64_t chunk = tile * kWarps + warp;
    if (which >= C::kAtOnce || chunk >= p.all) return;
    const double* lanes = shared + thread_row(which, warp) * (kWarp + 1);
    p.args.partial[chunk * guide_sums(guide_vectors(p.args)) + sum + which] =
        guide_tree<kWarp>([lanes](int i) { return lanes[i]; });
  }
  static PFC_HD int thread_row(int which, int warp) { return which * kWarps + warp; }
  static_assert(C::kAtOnce * kWarps <= kThreads);
};

// The second kernel: a block for a sample. Its parts have barriers between them.
template <class S>
struct GuideFinish {
  static constexpr int kShared = kMaxGuideSums * (kGuideStripes + 1);

  static PFC_HD void add(const GuideParams& p, int64_t sample, int thread, double* shared) {
    const int count = guide_sums(guide_vectors(p.args));
    const int64_t chunks = p.chunks.divisor;
    const double* partial = p.args.partial + sample * chunks * count;
    const int stripe = thread % kGuideStripes;
    PFC_NO_UNROLL
    for (int s = thread / kGuideStripes; s < count; s += kFinishStats) {
      double sum = 0.0;
      for (int64_t c = stripe; c < chunks; c += kGuideStripes) sum = sum + partial[c * count + s];
      shared[s * (kGuideStripes + 1) + stripe] = sum;
    }
  }
  static PFC_HD void join(const GuideParams& p, int thread, const double* shared, double* sums) {
    if (thread >= guide_sums(guide_vectors(p.args))) return;
    const double* stripes = shared + thread * (kGuideStripes + 1);
    sums[thread] = guide_tree<kGuideStripes>([stripes](int i) { return stripes[i]; });
  }
  static PFC_HD void solve(const GuideParams& p, int64_t sample, int thread, const double* sums, double* work) {
    if (thread == 0) guide_sample<S>(p.args, sample, sums, work);
  }
};

// ---------------------------------------------------------------------------------------------------------------- host
inline int64_t guide_tiles(const GuideParams& p) { return (p.all + kWarps - 1) / kWarps; }

template <class S, class Out, class Launch>
auto dispatch_guide_typed(const GuideArgs& args, Launch&& launch) {
  GuideParams p{args, make_divider(guide_chunks(args.sample)), args.batch * guide_chunks(args.sample)};
  Alignment alignment;
  for (int j = 0; j < args.branches; ++j) alignment.add(args.branch[j], args.out_dtype);
  alignment.add(args.point, args.state_dtype);
  alignment.add(args.momentum, args.state_dtype);
  const bool vector = args.sample % kItem == 0 && alignment.head(true) == 0;
  if (!vector && args.branches > 2) return launch(GuideVariant<S, Out, 0, false>{}, p);
  if (args.branches > 2) return launch(GuideVariant<S, Out, 0, true>{}, p);
  if (args.point != nullptr)
    return vector ? launch(GuideVariant<S, Out, 3, true>{}, p) : launch(GuideVariant<S, Out, 3, false>{}, p);
  return vector ? launch(GuideVariant<S, Out, 2, true>{}, p) : launch(GuideVariant<S, Out, 2, false>{}, p);
}

// launch(variant, params) runs both kernels and returns what the caller wants to know.
template <class S, class Launch>
auto dispatch_guide(const GuideArgs& args, Launch&& launch) {
  switch (args.out_dtype) {
    case DType::kFloat32: return dispatch_guide_typed<S, float>(args, launch);
    case DType::kFloat64: return dispatch_guide_typed<S, double>(args, launch);
    case DType::kBFloat16: return dispatch_guide_typed<S, BFloat16>(args, launch);
    default: return dispatch_guide_typed<S, Float16>(args, launch);
  }
}

}  // namespace pfc::cuda
