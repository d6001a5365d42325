// Norms with modulation and gated residuals on the CPU: how rows walk memory. The arithmetic is core/block.hpp.
//
// A row is read from memory once. Where it does not lie there as it is computed with (half precision, or the sum of a
// residual), it stays in `scratch` for the passes that follow, which is to say in the first-level cache. kNormRows rows of a
// sample go through each pass together: the sums of one need not wait for those of another, and what a sample shares
// is loaded once for all of them.
#pragma once

#include "../core/block.hpp"
#include "activation.hpp"
#include "block.hpp"
#include "two.hpp"

namespace pfc::cpu {
namespace {

// What the rows of a sample share, in S, in the order of Two: where `scratch` holds it.
template <class S>
struct NormShared {
  S *gate, *shift, *scale, *y_bias, *weight, *bias;

  NormShared(S* memory, int64_t padded) {
    S** const all[] = {&gate, &shift, &scale, &y_bias, &weight, &bias};
    for (int k = 0; k < 6; ++k) *all[k] = memory + k * padded;
  }
};

// Calls part(i, count) for all elements of a row, kTwo at a time; count is a constant but for the last.
template <class S, class Part>
PFC_INLINE void over_row(int64_t width, const Part& part) {
  int64_t i = 0;
  for (; i + kTwo<S> <= width; i += kTwo<S>) part(i, std::integral_constant<int, kTwo<S>>{});
  if (i < width) part(i, static_cast<int>(width - i));
}

template <class S, DType kDType, class Count>
PFC_INLINE Two<S> load_counted(const void* base, int64_t i, Count count) {
  if constexpr (std::is_same_v<Count, int>)
    return load_some<S, kDType>(base, i, count);
  else
    return load_two<S, kDType>(base, i);
}

template <class S, DType kDType, class Count>
PFC_INLINE void store_counted(void* base, int64_t i, const Two<S>& value, Count count, bool streaming) {
  if constexpr (std::is_same_v<Count, int>)
    store_some<S, kDType>(base, i, value, count);
  else
    store_two<S, kDType>(base, i, value, streaming);
}

template <class S, DType kDType>
inline void spread(const void* base, int64_t place, int64_t width, S* to) {
  if (base == nullptr) return;
  over_row<S>(width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    put_two<S>(to + i, load_counted<S, kDType>(base, place + i, count));
  });
}

// ------------------------------------------------------------------------------------------------------------- sums
// Zeros from element `count` on.
template <class S, DType kDType>
PFC_INLINE Two<S> first_elements(Two<S> value, int count) {
  for (int u = 0; u < 2; ++u)
    for (int l = 0; l < Wide<S>::kLanes; ++l)
      if (element_of<S, kDType>(u, l) >= count) value.part[u][l] = S(0);
  return value;
}

template <int kHalf, class V>
PFC_INLINE void fold_vector(V& sum) {
  using Order = decltype(V{} < V{});
  Order order;
  for (int l = 0; l < static_cast<int>(sizeof(V) / sizeof(sum[0])); ++l) order[l] = l ^ kHalf;
  sum = sum + (V)__builtin_shuffle(sum, order);
  if constexpr (kHalf > 1) fold_vector<kHalf / 2>(sum);
}

// Lane l and l + 64, l and l + 32, ... of a row's lanes, which lie in the order of Two.
template <class S, DType kDType>
PFC_INLINE S fold_lanes(const S* lane) {
  constexpr int kLanes = Wide<S>::kLanes, kParts = kNormLanes / kLanes;
  Native<S> part[kParts];
  for (int p = 0; p < kParts; ++p) part[p] = load_bytes<Native<S>>(lane + p * kLanes);
  for (int half = kParts / 2; half >= 2; half /= 2)
    for (int p = 0; p < half; ++p) part[p] = part[p] + part[p + half];
  if constexpr (kDType == DType::kBFloat16) {  // even and odd lanes meet last
    fold_vector<kLanes / 2>(part[0]);
    fold_vector<kLanes / 2>(part[1]);
    return part[0][0] + part[1][0];
  } else {
    part[0] = part[0] + part[1];
    fold_vector<kLanes / 2>(part[0]);
    return part[0][0];
  }
}

// The lanes of a row's sums (core/block.hpp): part(i, count, values) gives what is to be added for the elements from i on. They
// are gone through in sweeps, as many at a time as registers hold.
template <class S, DType kDType, int kSums, class Part>
PFC_INLINE void row_lanes(int64_t width, const Part& part, S (*lane)[kNormLanes]) {
  constexpr int kSweep = PFC_NATIVE_BYTES == 64 ? 4 : 2;
  static_assert(kNormLanes % (kSweep * kTwo<S>) == 0);
  const int64_t whole = width / kNormLanes * kNormLanes;
  const std::integral_constant<int, kTwo<S>> all{};
  for (int l = 0; l < kNormLanes; l += kSweep * kTwo<S>) {
    Two<S> sum[kSums][kSweep] = {};
    for (int64_t i = l; i < whole; i += kNormLanes) {
#pragma GCC unroll 4
      for (int u = 0; u < kSweep; ++u) {
        Two<S> value[kSums];
        part(i + u * kTwo<S>, all, value);
        for (int s = 0; s < kSums; ++s) sum[s][u] = sum[s][u] + value[s];
      }
    }
    for (int s = 0; s < kSums; ++s)
#pragma GCC unroll 4
      for (int u = 0; u < kSweep; ++u) put_two<S>(lane[s] + l + u * kTwo<S>, sum[s][u]);
  }
  over_row<S>(width - whole, [&](int64_t i, auto count) __attribute__((always_inline)) {
    Two<S> value[kSums];
    part(whole + i, count, value);
    for (int s = 0; s < kSums; ++s) {
      if constexpr (std::is_same_v<decltype(count), int>) value[s] = first_elements<S, kDType>(value[s], count);
      put_two<S>(lane[s] + i, get_two<S>(lane[s] + i) + value[s]);
    }
  });
}

// --------------------------------------------------------------------------------------------------------- elements
// Memory of core/block.hpp: Two from element i of a row on.
template <class S, DType kDType, class Count>
struct RowMemory {
  const NormArgs& args;
  const NormShared<S>& shared;
  int64_t row, i;
  Count count;

  PFC_INLINE Two<S> y() const { return load_counted<S, kDType>(args.y, row + i, count); }
  PFC_INLINE Two<S> y_bias() const { return get_two<S>(shared.y_bias + i); }
  PFC_INLINE Two<S> gate() const { return get_two<S>(shared.gate + i); }
  PFC_INLINE Two<S> weight() const { return get_two<S>(shared.weight + i); }
  PFC_INLINE Two<S> bias() const { return get_two<S>(shared.bias + i); }
  PFC_INLINE Two<S> scale() const { return get_two<S>(shared.scale + i); }
  PFC_INLINE Two<S> shift() const { return get_two<S>(shared.shift + i); }
};

// A number for each of kRows rows, and Two for each: what norm_element takes for all of them at once.
template <class S, int kRows>
struct RowNumbers {
  S row[kRows];

  RowNumbers() = default;
  explicit PFC_INLINE RowNumbers(int value) {
    for (S& one : row) one = static_cast<S>(value);
  }
  friend PFC_INLINE Two<S> operator+(const RowNumbers& one, const Two<S>& b) {
    return {{one.row[0] + b.part[0], one.row[0] + b.part[1]}};
  }
};

template <class S, int kRows>
struct RowTwos {
  Two<S> row[kRows];

  template <class F>
  PFC_INLINE RowTwos each(const F& f) const {
    RowTwos result;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) result.row[r].part[u] = f(r, u);
    return result;
  }
  friend PFC_INLINE RowTwos operator-(const RowTwos& a, const RowNumbers<S, kRows>& b) {
    return a.each([&](int r, int u) { return a.row[r].part[u] - b.row[r]; });
  }
  friend PFC_INLINE RowTwos operator*(const RowNumbers<S, kRows>& b, const RowTwos& a) {
    return a.each([&](int r, int u) { return b.row[r] * a.row[r].part[u]; });
  }
  friend PFC_INLINE RowTwos operator*(const RowTwos& a, const Two<S>& b) {
    return a.each([&](int r, int u) { return a.row[r].part[u] * b.part[u]; });
  }
  friend PFC_INLINE RowTwos operator+(const RowTwos& a, const Two<S>& b) {
    return a.each([&](int r, int u) { return a.row[r].part[u] + b.part[u]; });
  }
};

// Rows row .. row + kRows, all of one sample.
template <class S, DType kDType, bool kResidual, int kRows>
inline void norm_group(const NormArgs& given, const NormShared<S>& given_shared, S* scratch, int64_t padded,
                       int64_t row) {
  // Copies whose addresses stay here: the stores below cannot change them, so their pointers stay in registers.
  const NormArgs args = given;
  const NormShared<S> shared = given_shared;
  constexpr bool kDirect = (kDType == DType::kFloat64 || kDType == DType::kFloat32) && !kResidual;
  const bool streams_state = args.streaming && args.x_out != args.x;  // what has just been read is in the cache
  const int64_t width = args.width, first = row * width;
  // Elements of a row, once: written where they are to go, and kept.
  const auto take = [&](int r, int64_t i, auto count) __attribute__((always_inline)) {
    const int64_t begin = first + r * width;
    Two<S> x = load_counted<S, kDType>(args.x, begin + i, count);
    if constexpr (kResidual) {
      const RowMemory<S, kDType, decltype(count)> memory{args, shared, begin, i, count};
      x = residual_element(args, x, memory);
      store_counted<S, kDType>(args.x_out, begin + i, x, count, streams_state);
      x = as_stored<S, kDType>(x);
    }
    if constexpr (!kDirect) put_two<S>(scratch + r * padded + i, x);
    return x;
  };
  const auto again = [&](int r, int64_t i, auto count) __attribute__((always_inline)) {
    if constexpr (kDirect) return load_counted<S, kDType>(args.x, first + r * width + i, count);
    return get_two<S>(scratch + r * padded + i);
  };
  // The rows that come next, which nothing asks for while these are worked on.
  const auto fetch_next = [&](const void* base, int r, int64_t i) __attribute__((always_inline)) {
    fetch_ahead<kTwo<S> * kBytes<kDType>>(base, (first + (kRows + r) * width + i) * kBytes<kDType>);
  };
  alignas(64) S lane[kRows][2][kNormLanes];
  RowNorm<S> norm[kRows];
  if (args.rms) {
    for (int r = 0; r < kRows; ++r)
      row_lanes<S, kDType, 1>(
          width,
          [&](int64_t i, auto count, Two<S>* value) __attribute__((always_inline)) {
            const Two<S> x = take(r, i, count);
            value[0] = x * x;
          },
          lane[r]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) norm[r] = row_norm(args, S(0), S(0), fold_lanes<S, kDType>(lane[r][0]));
  } else {
    for (int r = 0; r < kRows; ++r)
      row_lanes<S, kDType, 1>(
          width,
          [&](int64_t i, auto count, Two<S>* value) __attribute__((always_inline)) { value[0] = take(r, i, count); },
          lane[r]);
    S center[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) center[r] = row_mean(fold_lanes<S, kDType>(lane[r][0]), width);
    for (int r = 0; r < kRows; ++r)
      row_lanes<S, kDType, 2>(
          width,
          [&](int64_t i, auto count, Two<S>* value) __attribute__((always_inline)) {
            fetch_next(args.x, r, i);
            value[0] = again(r, i, count) - center[r];
            value[1] = value[0] * value[0];
          },
          lane[r]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      norm[r] = row_norm(args, center[r], fold_lanes<S, kDType>(lane[r][0]), fold_lanes<S, kDType>(lane[r][1]));
  }
  RowNorm<RowNumbers<S, kRows>> norms;
  for (int r = 0; r < kRows; ++r) {
    norms.center.row[r] = norm[r].center;
    norms.delta.row[r] = norm[r].delta;
    norms.rstd.row[r] = norm[r].rstd;
  }
  over_row<S>(width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const RowMemory<S, kDType, decltype(count)> memory{args, shared, first, i, count};
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kResidual) fetch_next(args.y, r, i);
      if (args.rms) fetch_next(args.x, r, i);
    }
    RowTwos<S, kRows> x;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x.row[r] = again(r, i, count);
    x = norm_element(args, norms, x, memory);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      store_counted<S, kDType>(args.out, first + r * width + i, x.row[r], count, args.streaming);
  });
}

template <class S, DType kDType>
inline void residual_row(const NormArgs& given, const NormShared<S>& given_shared, int64_t row) {
  const NormArgs args = given;
  const NormShared<S> shared = given_shared;
  const bool streams_state = args.streaming && args.x_out != args.x;
  const int64_t begin = row * args.width;
  over_row<S>(args.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const RowMemory<S, kDType, decltype(count)> memory{args, shared, begin, i, count};
    const Two<S> x = residual_element(args, load_counted<S, kDType>(args.x, begin + i, count), memory);
    store_counted<S, kDType>(args.x_out, begin + i, x, count, streams_state);
  });
}

template <class S, DType kDType, bool kResidual>
inline void norm_rows(const NormArgs& args, S* scratch, int64_t begin, int64_t end) {
  const int64_t width = args.width, padded = norm_padded(width), together = norm_rows_together(width);
  const NormShared<S> shared(scratch + together * padded, padded);
  spread<S, kDType>(args.y_bias, 0, width, shared.y_bias);
  spread<S, kDType>(args.weight, 0, width, shared.weight);
  spread<S, kDType>(args.bias, 0, width, shared.bias);
  for (int64_t row = begin; row < end;) {
    const int64_t sample = row / args.tokens, next = (sample + 1) * args.tokens, stop = next < end ? next : end;
    // One row for all samples is spread once.
    const auto of_sample = [&](const Rows& rows, S* to) {
      if (rows.stride != 0 || row == begin) spread<S, kDType>(rows.data, sample * rows.stride, width, to);
    };
    of_sample(args.gate, shared.gate);
    of_sample(args.shift, shared.shift);
    of_sample(args.scale, shared.scale);
    if (!args.out) {
      for (; row < stop; ++row) residual_row<S, kDType>(args, shared, row);
      continue;
    }
    for (; together == kNormRows && row + kNormRows <= stop; row += kNormRows)
      norm_group<S, kDType, kResidual, kNormRows>(args, shared, scratch, padded, row);
    for (; row < stop; ++row) norm_group<S, kDType, kResidual, 1>(args, shared, scratch, padded, row);
  }
  if (args.streaming) finish_streaming();
}

template <class S, DType kDType>
inline void norm_of(const NormArgs& args, void* scratch, int64_t begin, int64_t end) {
  S* const row = reinterpret_cast<S*>(static_cast<char*>(scratch) + kScratchShift);
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
