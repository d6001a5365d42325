// qk_norm_rope on the CPU: token by token, so that a token's line of the table serves all its heads. A head goes through a
// buffer in the first-level cache, padded with zeros to whole lanes; what it is made of is read once and written once.
#pragma once

#include <type_traits>

#include "../core/qk_norm_rope.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

// kHeadLanes partial sums, as native vectors.
template <class S>
struct HeadSum {
  using V = typename Wide<S>::Native;
  static constexpr int kLanes = Wide<S>::kLanes, kParts = kHeadLanes / kLanes;
  V part[kParts] = {};

  PFC_INLINE S total() const {
    alignas(64) S lane[kHeadLanes];
    __builtin_memcpy(lane, part, sizeof(lane));
    for (int half = kHeadLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
    return lane[0];
  }
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

// What a token's heads share: its line of the table, spread over a head's dimensions.
template <class S>
struct Rotation {
  alignas(64) S cosine[kMaxHead];
  alignas(64) S sine[kMaxHead];  // with its sign

  void spread(const QkArgs& args, int64_t sample, int64_t token) {
    const int64_t line = sample * args.table_batch + token * args.columns;
    for (int i = 0; i < args.head; ++i) {
      const Turn turn = turn_of(args.head, args.columns, args.adjacent, i);
      cosine[i] = load_one<S>(args.cos, args.table_dtype, line + turn.column);
      const S value = load_one<S>(args.sin, args.table_dtype, line + turn.column);
      sine[i] = turn.negative ? -value : value;
    }
  }
};

// One parameter vector in S: converted once for a range of tokens.
template <class S>
PFC_INLINE const S* as_numbers(const void* given, DType dtype, int64_t count, S* memory) {
  if (given == nullptr) return nullptr;
  for (int64_t i = 0; i < count; ++i) memory[i] = load_one<S>(given, dtype, i);
  return memory;
}

template <class S>
PFC_INLINE typename Wide<S>::Native swap_neighbours(const typename Wide<S>::Native& v) {
  using V = typename Wide<S>::Native;
  typename NativeOf<std::conditional_t<sizeof(S) == 4, int32_t, int64_t>, Wide<S>::kLanes>::type order;
  for (int l = 0; l < Wide<S>::kLanes; ++l) order[l] = l ^ 1;
  return (V)__builtin_shuffle(v, order);
}

// Zeros after the last dimension, to whole lanes.
template <class S>
PFC_INLINE void pad(S* h, int head) {
  for (unsigned j = static_cast<unsigned>(head); j % kHeadLanes != 0; ++j) h[j] = S(0);
}

// The norm of what lies in `h`, with its scale and shift.
template <class S>
PFC_INLINE void normalise(const QkArgs& args, S* h, const S* weight, const S* shift) {
  using V = typename Wide<S>::Native;
  constexpr int kLanes = Wide<S>::kLanes;
  const int head = args.head, padded = (head + kHeadLanes - 1) / kHeadLanes * kHeadLanes;
  // Each time: what is not finite in one head would stay there for the next.
  pad(h, head);
  if (args.norm == HeadNorm::kLayer) {
    HeadSum<S> sum;
    for (int j = 0; j < padded; j += kHeadLanes)
      for (int p = 0; p < HeadSum<S>::kParts; ++p) sum.part[p] = sum.part[p] + load_bytes<V>(h + j + p * kLanes);
    const S mean = sum.total() / static_cast<S>(head);
    for (int j = 0; j < padded; j += kLanes) store_bytes(h + j, load_bytes<V>(h + j) - mean, false);
    pad(h, head);
  }
  HeadSum<S> squares;
  for (int j = 0; j < padded; j += kHeadLanes)
    for (int p = 0; p < HeadSum<S>::kParts; ++p) {
      const V value = load_bytes<V>(h + j + p * kLanes);
      squares.part[p] = squares.part[p] + value * value;
    }
  const S scale = inverse_deviation(squares.total(), head, args.eps);
  // The parameters are padded as the buffer is.
  for (int j = 0; j < padded; j += kLanes) {
    V value = load_bytes<V>(h + j) * scale;
    if (weight) value = value * load_bytes<V>(weight + j);
    if (shift) value = value + load_bytes<V>(shift + j);
    store_bytes(h + j, value, false);
  }
}

template <class S, DType kType>
inline void qk_norm_rope_range(const QkArgs& given, int64_t begin, int64_t end) {
  using V = typename Wide<S>::Native;
  constexpr int kLanes = Wide<S>::kLanes;
  const QkArgs args = given;  // its address stays here: stores cannot change it
  const int head = args.head;
  const int64_t all_heads = args.heads + 2 * args.kv_heads;
  Rotation<S> rotation;
  alignas(64) S parameters[4][kMaxHead] = {};
  const S *weight[2], *shift[2];
  for (int w = 0; w < 2; ++w) {
    weight[w] = as_numbers(args.weight[w], args.weight_dtype, head, parameters[w]);
    shift[w] = as_numbers(args.shift[w], args.weight_dtype, head, parameters[2 + w]);
  }
  alignas(64) S h[kMaxHead];

  for (int64_t at = begin; at < end; ++at) {
    const int64_t sample = at / args.tokens, token = at - sample * args.tokens;
    const int64_t from = sample * args.batch_stride + token * args.token_stride;
    if (args.cos) rotation.spread(args, sample, token);
    for (int64_t index = 0; index < all_heads; ++index) {
      const HeadPlace place = head_place(args.heads, args.kv_heads, index);
      const int64_t first = from + index * head, bias = index * head;
      void* const out = args.out[place.which];
      const int64_t to = sample * args.out_batch[place.which] + place.number * args.out_head[place.which] + token * head;
      const auto load = [&](int j) __attribute__((always_inline)) {
        const V value = load_native<S>(args.qkv, kType, first + j);
        return args.bias ? value + load_native<S>(args.bias, args.bias_dtype, bias + j) : value;
      };
      const auto load_single = [&](int i) __attribute__((always_inline)) {
        const S value = load_one<S>(args.qkv, kType, first + i);
        return args.bias ? value + load_one<S>(args.bias, args.bias_dtype, bias + i) : value;
      };
      const auto store = [&](int j, const V& value) __attribute__((always_inline)) {
        store_native<S>(out, kType, to + j, value, args.streaming);
      };
      const auto store_single = [&](int i, S value) __attribute__((always_inline)) {
        store_one<S>(out, kType, to + i, value);
      };
      if (place.which == 2 || (args.norm == HeadNorm::kNone && !args.cos)) {
        cover<S>(head, [&](int j) { store(j, load(j)); }, [&](int i) { store_single(i, load_single(i)); });
        continue;
      }
      cover<S>(head, [&](int j) { store_bytes(h + j, load(j), false); }, [&](int i) { h[i] = load_single(i); });
      if (args.norm != HeadNorm::kNone) normalise<S>(args, h, weight[place.which], shift[place.which]);
      if (!args.cos) {
        cover<S>(head, [&](int j) { store(j, load_bytes<V>(h + j)); }, [&](int i) { store_single(i, h[i]); });
        continue;
      }
      const auto turn = [&](int j, const V& partner) __attribute__((always_inline)) {
        store(j, turned<V>(load_bytes<V>(h + j), partner, load_bytes<V>(rotation.cosine + j),
                           load_bytes<V>(rotation.sine + j)));
      };
      const auto turn_single = [&](int i, int partner) __attribute__((always_inline)) {
        store_single(i, turned<S>(h[i], h[partner], rotation.cosine[i], rotation.sine[i]));
      };
      if (args.adjacent) {
        cover<S>(
            head, [&](int j) { turn(j, swap_neighbours<S>(load_bytes<V>(h + j))); },
            [&](int i) { turn_single(i, i ^ 1); });
        continue;
      }
      const int half = head / 2;
      cover<S>(
          half, [&](int j) { turn(j, load_bytes<V>(h + j + half)); }, [&](int i) { turn_single(i, i + half); });
      cover<S>(
          half, [&](int j) { turn(j + half, load_bytes<V>(h + j)); }, [&](int i) { turn_single(i + half, i); });
    }
  }
  static_assert(kHeadLanes % kLanes == 0);
  if (args.streaming) finish_streaming();
}

// Tokens begin .. end of the batch.
inline void qk_norm_rope(const QkArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::kFloat32: return qk_norm_rope_range<float, DType::kFloat32>(args, begin, end);
    case DType::kFloat64: return qk_norm_rope_range<double, DType::kFloat64>(args, begin, end);
    case DType::kBFloat16: return qk_norm_rope_range<float, DType::kBFloat16>(args, begin, end);
    default: return qk_norm_rope_range<float, DType::kFloat16>(args, begin, end);
  }
}

}  // namespace
}  // namespace pfc::cpu
