// adaptive_ on CUDA in three kernels: sums over chunks of the samples, the control of each sample, and the elements. A thread
// has one lane of a chunk in the order of core/guide.hpp, eight elements; sums meet in shared memory, without atomics. A
// sample's phase is its own, so what a chunk has to do differs from one to the next, never within one. Compiles for the host
// as well, for the tests.
#pragma once

#include <type_traits>

#include "../core/adaptive.hpp"
#include "../core/guide.hpp"
#include "pack.hpp"

namespace pfc::cuda {

inline constexpr int kAdaptiveChunks = kThreads / kGuideLanes;   // of a block
inline constexpr int kAdaptiveEach = kGuideChunk / kGuideLanes;  // elements of a thread
inline constexpr int kAdaptiveShared = 2 * kAdaptiveChunks * kGuideLanes;

// The method's table goes with the launch: args.table is the host's.
struct AdaptiveParams {
  AdaptiveArgs args;
  Divider chunks;  // of a sample
  int64_t all;     // chunks of the places
  double table[method_record::kRows * method_record::kColumns];
};

PFC_HD int64_t adaptive_sample(const AdaptiveArgs& args, int64_t place) {
  return args.home == nullptr ? place : args.home[place];
}

// What one thread does for its chunk. The host does not look at a device's numbers: a place of no sample, and a sample whose
// records lead elsewhere, are left alone.
template <class S, class Out>
struct AdaptiveThread {
  struct V {
    S v[kAdaptiveEach];
  };

  const AdaptiveArgs& args;
  const Method method;
  int64_t chunk, place, sample;  // the chunk, of all; none if it is not below params.all
  int64_t first;                 // the thread's first element in its sample
  int lane, slot_of_chunk;
  bool present;
  const double* clock;
  int64_t* counts;

  PFC_HD AdaptiveThread(const AdaptiveParams& p, int64_t tile, int thread)
      : args(p.args), method{p.table}, lane(thread % kGuideLanes), slot_of_chunk(thread / kGuideLanes) {
    chunk = tile * kAdaptiveChunks + slot_of_chunk;
    present = chunk < p.all;
    const int64_t at = present ? chunk : 0;
    place = p.chunks.quotient(at);
    sample = adaptive_sample(args, place);
    if (sample < 0 || sample >= args.batch) {
      present = false;
      sample = 0;
    }
    first = (at - place * p.chunks.divisor) * kGuideChunk + lane;
    clock = args.clock + sample * clock_record::kWidth;
    counts = args.counts + sample * count_record::kWidth;
  }

  PFC_HD bool has(int e, int64_t size) const { return first + e * kGuideLanes < size; }
  template <class T>
  PFC_HD V load(const void* base, int64_t row) const {
    const T* from = static_cast<const T*>(base) + row * args.sample + first;
    V r{};
    PFC_FULL_UNROLL
    for (int e = 0; e < kAdaptiveEach; ++e)
      if (has(e, args.sample)) r.v[e] = decode<S>(from[e * kGuideLanes]);
    return r;
  }
  template <class T>
  PFC_HD void store(void* base, int64_t row, const V& value) const {
    T* to = static_cast<T*>(base) + row * args.sample + first;
    PFC_FULL_UNROLL
    for (int e = 0; e < kAdaptiveEach; ++e)
      if (has(e, args.sample)) to[e * kGuideLanes] = Encode<T>::from(value.v[e]);
  }
  PFC_HD int64_t slot(int64_t j) const { return (args.k_by_place ? place : sample) * args.slots + j; }

  PFC_HD V value() const {
    V r = load<Out>(args.f, place);
    const S sign = static_cast<S>(args.sign);
    PFC_FULL_UNROLL
    for (int e = 0; e < kAdaptiveEach; ++e) r.v[e] = r.v[e] * sign;
    return r;
  }

  // sum_j weight(j) k_j in the state's dtype, over the weights that are not 0.
  template <class Weight>
  PFC_HD V weighted(int count, double h, const Weight& weight) const {
    V total{};
    PFC_NO_UNROLL
    for (int j = 0; j < count; ++j) {
      const double w = weight(j);
      if (w == 0.0) continue;
      const S coefficient = static_cast<S>(h * w);
      const V k = load<S>(args.k, slot(j));
      PFC_FULL_UNROLL
      for (int e = 0; e < kAdaptiveEach; ++e) total.v[e] = total.v[e] + coefficient * k.v[e];
    }
    return total;
  }
  PFC_HD V of_row(int row, double h) const {
    return weighted(method_record::kColumns, h, [this, row](int j) { return method.at(row, j); });
  }
  PFC_HD V moved(const V& from, const V& by) const {
    V r;
    PFC_FULL_UNROLL
    for (int e = 0; e < kAdaptiveEach; ++e) r.v[e] = from.v[e] + by.v[e];
    return r;
  }

  // ---------------------------------------------------------------------------------------------------------- sums
  // The first part: the thread's lane of both sums. Barriers come between the parts.
  PFC_HD void add(double* shared) const {
    double one = 0.0, two = 0.0;
    const int64_t phase = counts[count_record::kPhase];
    const AdaptiveSums sums = adaptive_sums_of(method, phase);
    if (present && sums != AdaptiveSums::kNone && counts[count_record::kStatus] == kUnfinished &&
        adaptive_fits(args, method, sample)) {
      const double rtol = clock[clock_record::kRtol], atol = clock[clock_record::kAtol];
      const V f = value();
      if (sums != AdaptiveSums::kProbe) store<S>(args.k, slot(phase), f);
      V before{}, after{}, err{}, third{};
      if (sums != AdaptiveSums::kFinite) before = load<S>(args.x, sample);
      if (sums == AdaptiveSums::kProbe) after = load<S>(args.k, slot(0));
      if (sums == AdaptiveSums::kError) {
        const double h = clock[clock_record::kH];
        if (method.extra() > 0) {
          after = moved(before, of_row(method_record::kPoint + method.stages(), h));
          store<S>(args.y, place, after);
        } else {
          after = load<S>(args.y, place);
        }
        err = of_row(method_record::kError, h);
        if (method.two_errors()) third = of_row(method_record::kError3, h);
      }
      PFC_FULL_UNROLL
      for (int e = 0; e < kAdaptiveEach; ++e) {
        if (!has(e, args.norm)) continue;
        const double x = static_cast<double>(before.v[e]), g = static_cast<double>(f.v[e]);
        const double to = static_cast<double>(after.v[e]), a = size_of(x), b = size_of(to);
        double square, other = 0.0;
        if (sums == AdaptiveSums::kStart) {
          square = adaptive_square(x, a, rtol, atol);
          other = adaptive_square(g, a, rtol, atol);
        } else if (sums == AdaptiveSums::kProbe) {
          square = adaptive_square(g - to, a, rtol, atol);
        } else if (sums == AdaptiveSums::kError) {
          const double size = a > b ? a : b, nothing = to - to;
          square = adaptive_square(static_cast<double>(err.v[e]) + nothing, size, rtol, atol);
          if (method.two_errors()) other = adaptive_square(static_cast<double>(third.v[e]) + nothing, size, rtol, atol);
        } else {
          const double nothing = g * 0.0;
          square = nothing * nothing;
        }
        one = one + square;
        two = two + other;
      }
    }
    double* lanes = shared + slot_of_chunk * kGuideLanes + lane;
    lanes[0] = one;
    lanes[kAdaptiveChunks * kGuideLanes] = two;
  }
  // The second: one thread for each sum of each chunk.
  static PFC_HD void finish(const AdaptiveParams& p, int64_t tile, int thread, const double* shared) {
    if (thread >= 2 * kAdaptiveChunks) return;
    const int which = thread / kAdaptiveChunks, at = thread % kAdaptiveChunks;
    const int64_t chunk = tile * kAdaptiveChunks + at;
    if (chunk >= p.all) return;
    const double* lanes = shared + (which * kAdaptiveChunks + at) * kGuideLanes;
    p.args.partial[2 * chunk + which] = guide_tree<kGuideGroups>(
        [lanes](int g) { return (lanes[4 * g] + lanes[4 * g + 2]) + (lanes[4 * g + 1] + lanes[4 * g + 3]); });
  }

  // ------------------------------------------------------------------------------------------------------ elements
  PFC_HD void cast(const V& v) const {
    switch (args.inp_dtype) {
      case DType::kFloat32: return store<float>(args.inp, place, v);
      case DType::kFloat64: return store<double>(args.inp, place, v);
      case DType::kBFloat16: return store<BFloat16>(args.inp, place, v);
      default: return store<Float16>(args.inp, place, v);
    }
  }

  PFC_HD void write_rows(int64_t row, const V& ends) const {
    const double from = clock[clock_record::kFrom], h = clock[clock_record::kStep], to = clock[clock_record::kT];
    const int64_t every = method.stages() + 1 + method.extra();
    const int count = static_cast<int>(every < args.slots ? every : args.slots);
    PFC_NO_UNROLL
    for (; row < counts[count_record::kRow]; ++row) {
      const double theta = (args.times[row] - from) / h;
      V out = ends;
      if (args.times[row] != to)
        out =
            moved(load<S>(args.x, sample), weighted(count, h, [this, theta](int j) { return method.dense(j, theta); }));
      store<S>(args.rows, row * args.batch + sample, out);
    }
  }

  PFC_HD void apply() const {
    if (!present) return;
    const int64_t action = counts[count_record::kAction];
    if (action == 0) return;
    const int64_t kept = slot(method.stages() + 1 + method.extra());
    if ((action & kDoStore) != 0) store<S>(args.k, slot((action >> kSlotShift) & 0xff), value());
    if ((action & kDoKeep) != 0) store<S>(args.k, kept, load<S>(args.y, place));
    V state{};
    if ((action & kDoCommit) != 0) {
      state = (action & kDoFromKept) != 0 ? load<S>(args.k, kept) : load<S>(args.y, place);
      if ((action & kDoRows) != 0) write_rows(action >> kRowShift, state);
      store<S>(args.x, sample, state);
      store<S>(args.k, slot(0), load<S>(args.k, slot(method.stages())));
    } else if ((action & kDoPoint) != 0) {
      state = load<S>(args.x, sample);
    }
    if ((action & kDoPoint) != 0) {
      const int64_t phase = counts[count_record::kPhase];
      const double h = clock[clock_record::kH];
      const V by = phase == kProbe ? weighted(1, h, [](int) { return 1.0; })
                                   : of_row(method_record::kPoint + static_cast<int>(phase), h);
      state = moved(state, by);
      store<S>(args.y, place, state);
    }
    if (args.inp != nullptr && (action & (kDoPoint | kDoCast)) != 0)
      cast((action & kDoPoint) != 0 ? state : load<S>(args.y, place));
  }
};

// The second kernel: a thread for a sample.
struct AdaptiveDecision {
  static PFC_HD double joined(const double* partial, int64_t chunks) {
    return guide_tree<kGuideStripes>([partial, chunks](int stripe) {
      double sum = 0.0;
      PFC_NO_UNROLL
      for (int64_t c = stripe; c < chunks; c += kGuideStripes) sum = sum + partial[2 * c];
      return sum;
    });
  }

  // Returns whether the sample has finished with this evaluation.
  static PFC_HD bool run(const AdaptiveParams& p, int64_t place) {
    const AdaptiveArgs& args = p.args;
    if (place >= args.places) return false;
    const int64_t sample = adaptive_sample(args, place);
    if (sample < 0 || sample >= args.batch) return false;
    int64_t* counts = args.counts + sample * count_record::kWidth;
    const Method method{p.table};
    if (counts[count_record::kStatus] != kUnfinished || !adaptive_fits(args, method, sample)) {
      counts[count_record::kAction] = 0;
      return false;
    }
    double sum = 0.0, sum3 = 0.0;
    if (adaptive_sums_of(method, counts[count_record::kPhase]) != AdaptiveSums::kNone) {
      const double* partial = args.partial + 2 * place * p.chunks.divisor;
      sum = joined(partial, p.chunks.divisor);
      sum3 = joined(partial + 1, p.chunks.divisor);
    }
    AdaptiveControl control(args, method, sample);
    if ((control.run(sum, sum3) & kDoFinish) != 0) return true;
    switch (args.t_dtype) {
      case DType::kFloat64: static_cast<double*>(args.t)[place] = control.stage_time; break;
      case DType::kFloat32: static_cast<float*>(args.t)[place] = static_cast<float>(control.stage_time); break;
      case DType::kBFloat16: static_cast<BFloat16*>(args.t)[place] = Encode<BFloat16>::from(control.stage_time); break;
      default: static_cast<Float16*>(args.t)[place] = Encode<Float16>::from(control.stage_time);
    }
    return false;
  }
};

// ---------------------------------------------------------------------------------------------------------------- host
inline int64_t adaptive_tiles(const AdaptiveParams& p) { return (p.all + kAdaptiveChunks - 1) / kAdaptiveChunks; }

// launch(thread type, params) runs the three kernels.
template <class S, class Launch>
auto dispatch_adaptive(const AdaptiveArgs& args, Launch&& launch) {
  const int64_t chunks = guide_chunks(args.sample);
  AdaptiveParams p{args, make_divider(chunks), args.places * chunks, {}};
  for (int i = 0; i < method_record::kRows * method_record::kColumns; ++i) p.table[i] = args.table[i];
  switch (args.out_dtype) {
    case DType::kFloat32: return launch(std::type_identity<AdaptiveThread<S, float>>{}, p);
    case DType::kFloat64: return launch(std::type_identity<AdaptiveThread<S, double>>{}, p);
    case DType::kBFloat16: return launch(std::type_identity<AdaptiveThread<S, BFloat16>>{}, p);
    default: return launch(std::type_identity<AdaptiveThread<S, Float16>>{}, p);
  }
}

}  // namespace pfc::cuda
