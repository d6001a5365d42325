// qk_norm_rope on the CPU: token by token, so that a token's line of the table serves all its heads. What a head is made of is
// read once and written once; between, it lies in the first-level cache, its rows padded with zeros to whole lanes.
#pragma once

#include <type_traits>

#include "../core/qk_norm_rope.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

template <class S>
using HeadVector = typename Wide<S>::Native;
template <class S>
using HeadOrder = typename NativeOf<std::conditional_t<sizeof(S) == 4, int32_t, int64_t>, Wide<S>::kLanes>::type;

// kHeadLanes partial sums, as native vectors.
template <class S>
struct HeadSum {
  static constexpr int kLanes = Wide<S>::kLanes, kParts = kHeadLanes / kLanes;
  HeadVector<S> part[kParts] = {};

  // The upper half of the lanes to the lower, until one is left: vectors first, then lanes of the one that remains.
  PFC_INLINE S total() {
    for (int half = kParts / 2; half > 0; half /= 2)
      for (int p = 0; p < half; ++p) part[p] = part[p] + part[p + half];
    HeadVector<S> sum = part[0];
    fold<kLanes / 2>(sum);
    return sum[0];
  }

 private:
  template <int kHalf>
  static PFC_INLINE void fold(HeadVector<S>& sum) {
    HeadOrder<S> order;
    for (int l = 0; l < kLanes; ++l) order[l] = l ^ kHalf;
    sum = sum + (HeadVector<S>)__builtin_shuffle(sum, order);
    if constexpr (kHalf > 1) fold<kHalf / 2>(sum);
  }
};

// How rows of `length` elements lie in vectors. The last of them, if it is not full, is read so that it ends with the row, and
// turned until its own elements are the first; what it shares with the one before is written twice, alike.
template <class S>
struct RowShape {
  static constexpr int kLanes = Wide<S>::kLanes;
  int length, full, rest, padded;  // vectors that are full, elements after them, elements of a row in the buffer
  HeadOrder<S> gather, merge, keep;

  explicit RowShape(int count) : length(count) {
    full = count / kLanes;
    rest = count % kLanes;
    padded = (count + kHeadLanes - 1) / kHeadLanes * kHeadLanes;
    for (int l = 0; l < kLanes; ++l) {
      gather[l] = (l + kLanes - rest) & (kLanes - 1);
      merge[l] = l + rest;
      keep[l] = l < rest ? -1 : 0;
    }
  }
  PFC_INLINE int vectors() const { return full + (rest ? 1 : 0); }
  PFC_INLINE HeadVector<S> kept(const HeadVector<S>& v) const { return (HeadVector<S>)((HeadOrder<S>)v & keep); }
};

// Calls use(j) for vectors that cover 0 .. count, the last of which may overlap the one before, and one(i) for single
// elements where there are less than a vector's.
template <class S, class Use, class One>
PFC_INLINE void cover(int count, const Use& use, const One& one) {
  constexpr int kLanes = Wide<S>::kLanes;
  int j = 0;
  for (; j + kLanes <= count; j += kLanes) use(j);
  if (j == count) return;
  if (count >= kLanes) return use(count - kLanes);
  for (; j < count; ++j) one(j);
}

// Heads go through the buffer in groups, so that the square roots of one do not wait for those of another.
inline constexpr int kGroup = 16, kGroupElements = 4 * kMaxHead;

// What stays between two groups: parameters and a token's line of the table in the layout of the buffer, and the buffer.
template <class S>
struct HeadMemory {
  // Two rows may have a padding each.
  static constexpr int kSize = kMaxHead + 2 * kHeadLanes;
  alignas(64) S h[kGroupElements + 2 * kHeadLanes] = {};
  alignas(64) S weight[2][kSize] = {};
  alignas(64) S shift[2][kSize] = {};
  alignas(64) S cosine[kSize] = {};
  alignas(64) S sine[kSize] = {};  // with its sign
  alignas(64) S line[2][kMaxHead];

  // A token's line of the table, spread over the dimensions of a head.
  PFC_INLINE void spread(const QkArgs& args, int padded, int64_t at) {
    const int head = args.head, columns = args.columns, half = head / 2;
    const void* const table[2] = {args.cos, args.sin};
    for (int t = 0; t < 2; ++t)
      cover<S>(
          columns, [&](int j) { store_bytes(line[t] + j, load_native<S>(table[t], args.table_dtype, at + j), false); },
          [&](int i) { line[t][i] = load_one<S>(table[t], args.table_dtype, at + i); });
    const S* __restrict c = line[0], * __restrict s = line[1];
    if (!args.adjacent) {
      const int second = columns == head ? half : 0;
      for (int i = 0; i < half; ++i) {
        cosine[i] = c[i];
        sine[i] = -s[i];
        cosine[padded + i] = c[second + i];
        sine[padded + i] = s[second + i];
      }
    } else if (columns == head) {
      for (int k = 0; k < half; ++k) {
        cosine[2 * k] = c[2 * k];
        cosine[2 * k + 1] = c[2 * k + 1];
        sine[2 * k] = -s[2 * k];
        sine[2 * k + 1] = s[2 * k + 1];
      }
    } else {
      for (int k = 0; k < half; ++k) {
        cosine[2 * k] = c[k];
        cosine[2 * k + 1] = c[k];
        sine[2 * k] = -s[k];
        sine[2 * k + 1] = s[k];
      }
    }
  }
};

template <class S>
PFC_INLINE HeadVector<S> swap_neighbours(const HeadVector<S>& v) {
  HeadOrder<S> order;
  for (int l = 0; l < Wide<S>::kLanes; ++l) order[l] = l ^ 1;
  return (HeadVector<S>)__builtin_shuffle(v, order);
}

// kFull: how many vectors a row is, where it is whole vectors and that is a number worth code of its own; or 0.
template <class S, DType kType, int kRows, int kFull>
inline void qk_norm_rope_range(const QkArgs& given, int64_t begin, int64_t end) {
  using V = HeadVector<S>;
  constexpr int kLanes = Wide<S>::kLanes, kParts = HeadSum<S>::kParts;
  const QkArgs args = given;  // its address stays here: stores cannot change it
  const int head = kFull ? kFull * kLanes * kRows : args.head;
  const RowShape<S> shape(head / kRows);
  const int full = kFull ? kFull : shape.full, rest = kFull ? 0 : shape.rest;
  const int vectors = kFull ? kFull : shape.vectors(), padded = kFull ? kFull * kLanes : shape.padded;
  HeadMemory<S> memory;
  const bool norms = args.norm != HeadNorm::kNone, turns = args.cos != nullptr;
  const bool scales = args.weight[0] || args.weight[1], shifts = args.shift[0] || args.shift[1];
  for (int w = 0; w < 2; ++w)
    for (int i = 0; i < head; ++i) {
      const int at = i / shape.length * padded + i % shape.length;
      memory.weight[w][at] = args.weight[w] ? load_one<S>(args.weight[w], args.weight_dtype, i) : S(1);
      if (args.shift[w]) memory.shift[w][at] = load_one<S>(args.shift[w], args.weight_dtype, i);
    }

  const int head_size = kRows * padded,
            group = kGroupElements / head_size < kGroup ? kGroupElements / head_size : kGroup;

  // Vector j of the head that begins at `first`, with its bias.
  const auto load = [&](int64_t first, int64_t bias, int i) __attribute__((always_inline)) {
    const V value = load_native<S>(args.qkv, kType, first + i);
    if (!args.bias) return value;
    if (args.bias_dtype == kType) return value + load_native<S>(args.bias, kType, bias + i);
    return value + load_native<S>(args.bias, args.bias_dtype, bias + i);
  };
  const auto load_single = [&](int64_t first, int64_t bias, int i) __attribute__((always_inline)) {
    const S value = load_one<S>(args.qkv, kType, first + i);
    return args.bias ? value + load_one<S>(args.bias, args.bias_dtype, bias + i) : value;
  };
  const auto store = [&](void* out, int64_t to, const V& value)
                         __attribute__((always_inline)) { store_native<S>(out, kType, to, value, args.streaming); };

  // A head into the buffer.
  const auto fetch = [&](S* h, int64_t first, int64_t bias) __attribute__((always_inline)) {
    for (int row = 0; row < kRows; ++row) {
      const int from = row * shape.length;
      S* const to_row = h + row * padded;
      for (int j = 0; j < full; ++j) store_bytes(to_row + j * kLanes, load(first, bias, from + j * kLanes), false);
      if (rest == 0) continue;
      if (full > 0) {
        const V last = (V)__builtin_shuffle(load(first, bias, from + shape.length - kLanes), shape.gather);
        store_bytes(to_row + full * kLanes, shape.kept(last), false);
      } else {
        for (int i = 0; i < shape.length; ++i) to_row[i] = load_single(first, bias, from + i);
        for (int i = shape.length; i < kLanes; ++i) to_row[i] = S(0);
      }
    }
  };
  const auto add_up = [&](const S* h, auto&& term) __attribute__((always_inline)) {
    HeadSum<S> sum;
    for (int j = 0; j < head_size; j += kHeadLanes)
      for (int p = 0; p < kParts; ++p) sum.part[p] = sum.part[p] + term(load_bytes<V>(h + j + p * kLanes));
    return sum.total();
  };
  const auto centre = [&](S* h, S mean) __attribute__((always_inline)) {
    for (int row = 0; row < kRows; ++row)
      for (int j = 0; j < vectors; ++j) {
        S* const at = h + row * padded + j * kLanes;
        const V centred = load_bytes<V>(at) - mean;
        store_bytes(at, j < full ? centred : shape.kept(centred), false);
      }
  };
  // A head out of the buffer: scaled, moved, turned.
  const auto finish = [&](const S* h, S scale, const S* weight, const S* shift, void* out,
                          int64_t to) __attribute__((always_inline)) {
    const auto normal = [&](int at) __attribute__((always_inline)) {
      V value = load_bytes<V>(h + at) * scale;
      if (scales) value = value * load_bytes<V>(weight + at);
      if (shifts) value = value + load_bytes<V>(shift + at);
      return value;
    };
    const auto turn = [&](int at, const V& own, const V& partner) __attribute__((always_inline)) {
      return turned<V>(own, partner, load_bytes<V>(memory.cosine + at), load_bytes<V>(memory.sine + at));
    };
    // A row's vectors in order; of a row shorter than one, its elements.
    V before[kRows] = {};
    const auto put = [&](int row, int j, const V& value) __attribute__((always_inline)) {
      const int from = row * shape.length;
      if (j < full) {
        store(out, to + from + j * kLanes, value);
        before[row] = value;
      } else if (j > 0) {
        store(out, to + from + shape.length - kLanes, (V)__builtin_shuffle(before[row], value, shape.merge));
      } else {
        for (int i = 0; i < shape.length; ++i) store_one<S>(out, kType, to + from + i, value[i]);
      }
    };
    for (int j = 0; j < vectors; ++j) {
      const int at = j * kLanes;
      const V first_row = normal(at);
      if constexpr (kRows == 1) {
        put(0, j, turns ? turn(at, first_row, swap_neighbours<S>(first_row)) : first_row);
      } else {
        const V second_row = normal(padded + at);
        put(0, j, turn(at, first_row, second_row));
        put(1, j, turn(padded + at, second_row, first_row));
      }
    }
  };

  const int64_t counts[3] = {args.heads, args.kv_heads, args.kv_heads};
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sample = at / args.tokens, token = at - sample * args.tokens;
    int64_t bias = 0, first = sample * args.batch_stride + token * args.token_stride;
    if (turns) memory.spread(args, padded, sample * args.table_batch + token * args.columns);
    for (int which = 0; which < 3; ++which) {
      void* const out = args.out[which];
      int64_t to = sample * args.out_batch[which] + token * head;
      if (which == 2 || !(norms || turns)) {
        for (int64_t n = 0; n < counts[which]; ++n, first += head, bias += head, to += args.out_head[which])
          cover<S>(
              head, [&](int i) { store(out, to + i, load(first, bias, i)); },
              [&](int i) { store_one<S>(out, kType, to + i, load_single(first, bias, i)); });
        continue;
      }
      for (int64_t n = 0; n < counts[which]; n += group) {
        const int here = counts[which] - n < group ? static_cast<int>(counts[which] - n) : group;
        S scale[kGroup];
        for (int g = 0; g < here; ++g, first += head, bias += head) {
          S* const h = memory.h + g * head_size;
          fetch(h, first, bias);
          scale[g] = S(1);
          if (args.norm == HeadNorm::kLayer)
            scale[g] = add_up(h, [](const V& v) __attribute__((always_inline)) { return v; });
          if (args.norm == HeadNorm::kRms)
            scale[g] = add_up(h, [](const V& v) __attribute__((always_inline)) { return v * v; });
        }
        if (args.norm == HeadNorm::kLayer)
          for (int g = 0; g < here; ++g) {
            S* const h = memory.h + g * head_size;
            centre(h, scale[g] / static_cast<S>(head));
            scale[g] = add_up(h, [](const V& v) __attribute__((always_inline)) { return v * v; });
          }
        if (norms)
          for (int g = 0; g < here; ++g) scale[g] = inverse_deviation(scale[g], head, args.eps);
        for (int g = 0; g < here; ++g, to += args.out_head[which])
          finish(memory.h + g * head_size, scale[g], memory.weight[which], memory.shift[which], out, to);
      }
    }
  }
  static_assert(kHeadLanes % kLanes == 0);
  if (args.streaming) finish_streaming();
}

template <class S, DType kType>
inline void qk_norm_rope_typed(const QkArgs& args, int64_t begin, int64_t end) {
  const int rows = head_rows(args), row = args.head / rows;
  constexpr int kLanes = Wide<S>::kLanes, kCommon = 64 / kLanes;  // rows of 64 elements
  if constexpr (sizeof(S) == 4 && kCommon * kLanes % kHeadLanes == 0) {
    if (rows == 1 && row == 64) return qk_norm_rope_range<S, kType, 1, kCommon>(args, begin, end);
    if (rows == 1 && row == 128) return qk_norm_rope_range<S, kType, 1, 2 * kCommon>(args, begin, end);
    if (rows == 2 && args.head == 128) return qk_norm_rope_range<S, kType, 2, kCommon>(args, begin, end);
  }
  return rows == 2 ? qk_norm_rope_range<S, kType, 2, 0>(args, begin, end)
                   : qk_norm_rope_range<S, kType, 1, 0>(args, begin, end);
}

// Tokens begin .. end of the batch.
inline void qk_norm_rope(const QkArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::kFloat32: return qk_norm_rope_typed<float, DType::kFloat32>(args, begin, end);
    case DType::kFloat64: return qk_norm_rope_typed<double, DType::kFloat64>(args, begin, end);
    case DType::kBFloat16: return qk_norm_rope_typed<float, DType::kBFloat16>(args, begin, end);
    default: return qk_norm_rope_typed<float, DType::kFloat16>(args, begin, end);
  }
}

}  // namespace
}  // namespace pfc::cpu
