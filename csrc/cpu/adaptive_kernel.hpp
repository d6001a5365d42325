// adaptive_ on the CPU: a thread takes samples whole, or chunks of them in three rounds. core/adaptive.hpp says what is done.
#pragma once

#include <type_traits>

#include "../core/adaptive.hpp"
#include "guide_kernel.hpp"

namespace pfc::cpu {
namespace {

// Calls body(i, tag) for native vectors of S, then for what is left; the tag's type is that of a value.
template <class S, class Body>
PFC_INLINE void each(int count, const Body& body) {
  using V = typename Wide<S>::Native;
  int i = 0;
  for (; i + Wide<S>::kLanes <= count; i += Wide<S>::kLanes) body(i, V{});
  for (; i < count; ++i) body(i, S{});
}

template <class V>
PFC_INLINE auto as_double(const V& value) {
  if constexpr (std::is_arithmetic_v<V>) {
    return static_cast<double>(value);
  } else {
    using Doubles = typename NativeOf<double, sizeof(V) / sizeof(value[0])>::type;
    return __builtin_convertvector(value, Doubles);
  }
}
template <class V>
PFC_INLINE V magnitude(const V& v) {
  return v < 0 ? -v : v;
}

// A part of a sample: up to a chunk of its elements.
template <class S>
struct AdaptivePart {
  const AdaptiveArgs& args;
  const Method method;
  int64_t at;     // the first element in x and rows
  int64_t place;  // the first in f, y and inp
  S* k;           // the first in the sample's first slot
  S* x;
  S* y;
  const double* clock;
  int count, counted;  // elements, and those that count in norms

  PFC_INLINE AdaptivePart(const AdaptiveArgs& a, int64_t at_place, int64_t sample, int64_t chunk)
      : args(a), method{a.table} {
    const int64_t first = chunk * kGuideChunk;
    const auto clip = [first](int64_t size) {
      const int64_t rest = size - first;
      return static_cast<int>(rest < 0 ? 0 : rest < kGuideChunk ? rest : kGuideChunk);
    };
    at = sample * a.sample + first;
    place = at_place * a.sample + first;
    k = static_cast<S*>(a.k) + (a.k_by_place ? at_place : sample) * a.slots * a.sample + first;
    x = static_cast<S*>(a.x) + at;
    y = static_cast<S*>(a.y) + place;
    clock = a.clock + sample * clock_record::kWidth;
    count = clip(a.sample);
    counted = clip(a.norm);
  }

  PFC_INLINE S* slot(int64_t j) const { return k + j * args.sample; }

  template <class V>
  PFC_INLINE V value(int i) const {
    const S sign = static_cast<S>(args.sign);
    if constexpr (std::is_arithmetic_v<V>)
      return load_one<S>(args.f, args.out_dtype, place + i) * sign;
    else
      return load_native<S>(args.f, args.out_dtype, place + i) * sign;
  }
  template <class V>
  PFC_INLINE void cast(int i, const V& v) const {
    if constexpr (std::is_arithmetic_v<V>)
      store_one<S>(args.inp, args.inp_dtype, place + i, v);
    else
      store_native<S>(args.inp, args.inp_dtype, place + i, v, false);
  }
  template <class V>
  PFC_INLINE V weighted(const AdaptiveTerms<S>& terms, int i) const {
    V total{};
    for (int n = 0; n < terms.count; ++n)
      total = total + terms.weight[n] * load_bytes<V>(k + terms.slot[n] * args.sample + i);
    return total;
  }

  // The sum of the first `counted` of `square`, which has room for a chunk.
  PFC_INLINE double sum_of(double* square) const {
    if (counted == 0) return 0.0;
    const int steps = (counted + kGuideLanes - 1) / kGuideLanes;
    int lanes = 4;
    while (lanes < counted && lanes < kGuideLanes) lanes *= 2;
    const int read = lanes < Wide<double>::kSize ? Wide<double>::kSize : lanes;
    for (int i = counted; i < (steps - 1) * kGuideLanes + read; ++i) square[i] = 0.0;
    return chunk_sum<false>(square, nullptr, steps, lanes);
  }

  PFC_INLINE void sums(int64_t phase, double* sum) const {
    alignas(64) double one[kGuideChunk], two[kGuideChunk];
    const double rtol = clock[clock_record::kRtol], atol = clock[clock_record::kAtol];
    bool both = false;
    switch (adaptive_sums_of(method, phase)) {
      case AdaptiveSums::kStart:
        both = true;
        each<S>(count, [&](int i, auto tag) {
          using V = decltype(tag);
          const V f = value<V>(i);
          store_bytes(slot(0) + i, f, false);
          const auto x0 = as_double(load_bytes<V>(x + i));
          const auto size = magnitude(x0);
          store_bytes(one + i, adaptive_square(x0, size, rtol, atol), false);
          store_bytes(two + i, adaptive_square(as_double(f), size, rtol, atol), false);
        });
        break;
      case AdaptiveSums::kProbe:
        each<S>(count, [&](int i, auto tag) {
          using V = decltype(tag);
          const auto change = as_double(value<V>(i)) - as_double(load_bytes<V>(slot(0) + i));
          const auto size = magnitude(as_double(load_bytes<V>(x + i)));
          store_bytes(one + i, adaptive_square(change, size, rtol, atol), false);
        });
        break;
      case AdaptiveSums::kError: both = error(phase, one, two); break;
      default:
        each<S>(count, [&](int i, auto tag) {
          using V = decltype(tag);
          const V f = value<V>(i);
          store_bytes(slot(phase) + i, f, false);
          const auto nothing = as_double(f) * 0.0;
          store_bytes(one + i, nothing * nothing, false);
        });
    }
    sum[0] = sum_of(one);
    sum[1] = both ? sum_of(two) : 0.0;
  }

  PFC_INLINE bool error(int64_t phase, double* one, double* two) const {
    const double rtol = clock[clock_record::kRtol], atol = clock[clock_record::kAtol], h = clock[clock_record::kH];
    const auto weights = AdaptiveTerms<S>::of_row(method, method_record::kError, h);
    const bool both = method.two_errors(), ends = method.extra() > 0;
    AdaptiveTerms<S> third, state;
    if (both) third = AdaptiveTerms<S>::of_row(method, method_record::kError3, h);
    if (ends) state = AdaptiveTerms<S>::of_point(method, method.stages(), h);
    each<S>(count, [&](int i, auto tag) {
      using V = decltype(tag);
      store_bytes(slot(phase) + i, value<V>(i), false);
      const V before = load_bytes<V>(x + i);
      V after;
      if (ends) {
        after = before + weighted<V>(state, i);
        store_bytes(y + i, after, false);
      } else {
        after = load_bytes<V>(y + i);
      }
      const auto to = as_double(after);
      const auto a = magnitude(as_double(before)), b = magnitude(to);
      const auto size = a > b ? a : b;
      const auto nothing = to - to;  // a state that is not finite has no error
      store_bytes(one + i, adaptive_square(as_double(weighted<V>(weights, i)) + nothing, size, rtol, atol), false);
      if (both)
        store_bytes(two + i, adaptive_square(as_double(weighted<V>(third, i)) + nothing, size, rtol, atol), false);
    });
    return both;
  }

  // The output rows of the accepted step, from its start x, its end, and what is stored.
  PFC_INLINE void write_rows(int64_t first, int64_t last, const S* ends) const {
    const double from = clock[clock_record::kFrom], h = clock[clock_record::kStep], to = clock[clock_record::kT];
    for (int64_t row = first; row < last; ++row) {
      S* out = static_cast<S*>(args.rows) + row * args.batch * args.sample + at;
      if (args.times[row] == to) {
        __builtin_memcpy(out, ends, sizeof(S) * static_cast<size_t>(count));
        continue;
      }
      const auto terms = AdaptiveTerms<S>::of_time(method, (args.times[row] - from) / h, h);
      each<S>(count, [&](int i, auto tag) {
        using V = decltype(tag);
        const V sum = load_bytes<V>(x + i) + weighted<V>(terms, i);
        store_bytes(out + i, sum, false);
      });
    }
  }

  PFC_INLINE void apply(int64_t action, const int64_t* counts) const {
    const bool commit = action & kDoCommit, point = action & kDoPoint, keep = action & kDoKeep;
    bool store = action & kDoStore;
    const S* from = action & kDoFromKept ? slot(method.stages() + 1 + method.extra()) : y;
    S* kept = slot(method.stages() + 1 + method.extra());
    S* stored = slot((action >> kSlotShift) & 0xff);
    S* first_slot = slot(0);
    const S* last_slot = slot(method.stages());
    if (action & kDoRows) {
      if (store) each<S>(count, [&](int i, auto tag) { store_bytes(stored + i, value<decltype(tag)>(i), false); });
      store = false;
      write_rows(action >> kRowShift, counts[count_record::kRow], from);
    }
    AdaptiveTerms<S> terms;
    if (point) terms = AdaptiveTerms<S>::of_point(method, counts[count_record::kPhase], clock[clock_record::kH]);
    const bool cast_y = args.inp != nullptr && (point || (action & kDoCast));
    if (!store && !keep && !commit && !point && !cast_y) return;
    each<S>(count, [&](int i, auto tag) {
      using V = decltype(tag);
      if (store) store_bytes(stored + i, value<V>(i), false);
      if (keep) store_bytes(kept + i, load_bytes<V>(y + i), false);
      V state;
      if (commit) {
        state = load_bytes<V>(from + i);
        store_bytes(x + i, state, false);
        store_bytes(first_slot + i, load_bytes<V>(last_slot + i), false);
      } else if (point) {
        state = load_bytes<V>(x + i);
      }
      if (point) {
        state = state + weighted<V>(terms, i);
        store_bytes(y + i, state, false);
      } else if (cast_y) {
        state = load_bytes<V>(y + i);
      }
      if (cast_y) cast<V>(i, state);
    });
  }
};

PFC_INLINE int64_t sample_at(const AdaptiveArgs& args, int64_t place) {
  return args.home == nullptr ? place : args.home[place];
}

// A sample's sum from those of its chunks, in the order of core/guide.hpp.
PFC_INLINE double joined_chunks(const double* partial, int64_t chunks) {
  int width = 1;
  while (width < chunks && width < kGuideStripes) width *= 2;
  double stripe[kGuideStripes];
  for (int c = 0; c < width; ++c) stripe[c] = 0.0;
  for (int64_t c = 0; c < chunks; ++c) stripe[c % kGuideStripes] = stripe[c % kGuideStripes] + partial[2 * c];
  for (int half = width / 2; half > 0; half /= 2)
    for (int c = 0; c < half; ++c) stripe[c] = stripe[c] + stripe[c + half];
  return stripe[0];
}

// The control of one sample whose sums are done; its action.
PFC_INLINE int64_t adaptive_decision(const AdaptiveArgs& args, int64_t place, int64_t sample, bool summed) {
  const int64_t chunks = guide_chunks(args.sample);
  const double* partial = args.partial + 2 * place * chunks;
  const double sum = summed ? joined_chunks(partial, chunks) : 0.0;
  const double sum3 = summed ? joined_chunks(partial + 1, chunks) : 0.0;
  AdaptiveControl control(args, Method{args.table}, sample);
  const int64_t action = control.run(sum, sum3);
  if (action & kDoFinish)
    __atomic_fetch_sub(args.running, 1, __ATOMIC_RELAXED);
  else if (args.t_dtype == DType::kFloat64)
    static_cast<double*>(args.t)[place] = control.stage_time;
  else
    store_one<float>(args.t, args.t_dtype, place, static_cast<float>(control.stage_time));
  return action;
}

template <class S>
inline void adaptive_places(const AdaptiveArgs& args, int64_t begin, int64_t end) {
  const int64_t chunks = guide_chunks(args.sample);
  const Method method{args.table};
  for (int64_t place = begin; place < end; ++place) {
    const int64_t sample = sample_at(args, place);
    int64_t* counts = args.counts + sample * count_record::kWidth;
    if (counts[count_record::kStatus] != kUnfinished) continue;
    const int64_t phase = counts[count_record::kPhase];
    const bool summed = adaptive_sums_of(method, phase) != AdaptiveSums::kNone;
    if (summed)
      for (int64_t c = 0; c < chunks; ++c)
        AdaptivePart<S>(args, place, sample, c).sums(phase, args.partial + 2 * (place * chunks + c));
    const int64_t action = adaptive_decision(args, place, sample, summed);
    for (int64_t c = 0; c < chunks; ++c) AdaptivePart<S>(args, place, sample, c).apply(action, counts);
  }
}

// Places begin .. end, whole.
inline void adaptive(const AdaptiveArgs& args, int64_t begin, int64_t end) {
  args.state_dtype == DType::kFloat64 ? adaptive_places<double>(args, begin, end)
                                      : adaptive_places<float>(args, begin, end);
}

template <class S, bool kApply>
inline void adaptive_chunks(const AdaptiveArgs& args, int64_t begin, int64_t end) {
  const int64_t chunks = guide_chunks(args.sample);
  const Method method{args.table};
  for (int64_t c = begin; c < end; ++c) {
    const int64_t place = c / chunks, sample = sample_at(args, place);
    const int64_t* counts = args.counts + sample * count_record::kWidth;
    const AdaptivePart<S> part(args, place, sample, c - place * chunks);
    if constexpr (kApply) {
      if (counts[count_record::kAction] != 0) part.apply(counts[count_record::kAction], counts);
    } else {
      const int64_t phase = counts[count_record::kPhase];
      const bool summed = adaptive_sums_of(method, phase) != AdaptiveSums::kNone;
      if (summed && counts[count_record::kStatus] == kUnfinished) part.sums(phase, args.partial + 2 * c);
    }
  }
}

// The same in three rounds, for samples of many chunks: chunks, places, chunks.
inline void adaptive_sums(const AdaptiveArgs& args, int64_t begin, int64_t end) {
  args.state_dtype == DType::kFloat64 ? adaptive_chunks<double, false>(args, begin, end)
                                      : adaptive_chunks<float, false>(args, begin, end);
}
inline void adaptive_control(const AdaptiveArgs& args, int64_t begin, int64_t end) {
  const Method method{args.table};
  for (int64_t place = begin; place < end; ++place) {
    const int64_t sample = sample_at(args, place);
    int64_t* counts = args.counts + sample * count_record::kWidth;
    if (counts[count_record::kStatus] == kUnfinished)
      adaptive_decision(args, place, sample,
                        adaptive_sums_of(method, counts[count_record::kPhase]) != AdaptiveSums::kNone);
    else
      counts[count_record::kAction] = 0;
  }
}
inline void adaptive_apply(const AdaptiveArgs& args, int64_t begin, int64_t end) {
  args.state_dtype == DType::kFloat64 ? adaptive_chunks<double, true>(args, begin, end)
                                      : adaptive_chunks<float, true>(args, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
