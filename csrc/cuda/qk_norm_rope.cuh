// qk_norm_rope on CUDA: four threads take a head of a token, each of them four neighbouring lanes of its sums, which is one
// 16-byte access of float32; lanes meet in shared memory. A head is read again for each sum, from the first-level cache.
// Compiles for the host as well, for the tests.
#pragma once

#include <type_traits>

#include "../core/qk_norm_rope.hpp"
#include "number.hpp"

namespace pfc::cuda {

inline constexpr int kHeadThreads = kHeadLanes / kItem;       // that share a head
inline constexpr int kHeadsInTile = kThreads / kHeadThreads;  // heads of a block

struct QkParams {
  QkArgs args;
  Divider heads, tokens;  // heads of a token's product; tokens of a sample
  int64_t all;            // heads of the batch
};

// T the storage, kVector whether every row of every head begins and ends on a quad.
template <class T_, bool kVector_>
struct QkVariant {
  using T = T_;
  using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
  static constexpr bool kVector = kVector_;
  static constexpr int kShared = kThreads * kItem;
  static constexpr int kBlocks =
      sizeof(S) == 8 ? 2 : 3;  // of a multiprocessor: without a bound ptxas spills to fit four
};

// What one thread does for its head, in parts with a barrier between them: add, then total, for each sum; then finish.
template <class C>
struct QkThread {
  using S = typename C::S;
  using T = typename C::T;
  using V = Pack<S, kItem>;

  const QkArgs& args;
  int64_t sample, token, index;
  int64_t first, to;  // elements: of the product, of the output
  HeadPlace place;
  int thread, rows, length;
  bool present;

  PFC_HD QkThread(const QkParams& p, int64_t tile, int given) : args(p.args), thread(given) {
    const int64_t unit = tile * kHeadsInTile + thread / kHeadThreads;
    present = unit < p.all;
    const int64_t at = p.heads.quotient(present ? unit : 0);
    index = (present ? unit : 0) - at * p.heads.divisor;
    sample = p.tokens.quotient(at);
    token = at - sample * p.tokens.divisor;
    place = head_place(args.heads, args.kv_heads, index);
    first = sample * args.batch_stride + token * args.token_stride + index * args.head;
    to = sample * args.out_batch[place.which] + place.number * args.out_head[place.which] + token * args.head;
    rows = head_rows(args);
    length = args.head / rows;
  }

  // Whether the head goes through the norm.
  PFC_HD bool norms() const { return present && place.which < 2 && args.norm != HeadNorm::kNone; }
  // Where the thread's quads of a row begin, and how far apart they are.
  PFC_HD int begin() const { return thread % kHeadThreads * kItem; }
  PFC_HD Items<C::kVector, 1> item(int64_t base, int from, int i) const {
    const int rest = length - i;
    return {{{base + from + i, 0, 0, rest < kItem ? rest : kItem}}, 1};
  }
  // Elements i .. of the row that begins at `from`, with their bias; zero past its end.
  PFC_HD V load(int from, int i) const {
    V r = item(first, from, i).template load<S, T>(args.qkv);
    if (args.bias == nullptr) return r;
    const int64_t at = index * args.head + from + i;
    return r + load_numbers<S>(args.bias, args.bias_dtype, length - i, [=](int e) { return at + e; });
  }

  // The thread's lanes of the sum of x - mean, or of its square.
  PFC_HD void add(S* shared, S mean, bool squares) const {
    if (!norms()) return;
    V sum{};
    PFC_NO_UNROLL
    for (int row = 0; row < rows; ++row) {
      PFC_NO_UNROLL
      for (int i = begin(); i < length; i += kHeadLanes) {
        const V x = load(row * length, i);
        PFC_FULL_UNROLL
        for (int e = 0; e < kItem; ++e)
          if (i + e < length) {
            const S d = x.v[e] - mean;
            sum.v[e] = sum.v[e] + (squares ? d * d : d);
          }
      }
    }
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) shared[thread * kItem + e] = sum.v[e];
  }
  PFC_HD S total(const S* shared) const {
    const S* lane = shared + thread / kHeadThreads * kHeadLanes;
    V sum;
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) sum.v[e] = (lane[e] + lane[e + 8]) + (lane[e + 4] + lane[e + 12]);
    return (sum.v[0] + sum.v[2]) + (sum.v[1] + sum.v[3]);
  }

  // With norm, scale and shift.
  PFC_HD V normal(int from, int i, S mean, S scale) const {
    V x = load(from, i);
    if (!norms()) return x;
    const auto at = [=](int e) { return from + i + e; };
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) x.v[e] = (x.v[e] - mean) * scale;
    if (const void* weight = args.weight[place.which]) {
      const V w = load_numbers<S>(weight, args.weight_dtype, length - i, at);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) x.v[e] = x.v[e] * w.v[e];
    }
    if (const void* shift = args.shift[place.which]) x = x + load_numbers<S>(shift, args.weight_dtype, length - i, at);
    return x;
  }
  PFC_HD V turn(int from, int i, const V& own, const V& partner) const {
    const int64_t line = sample * args.table_batch + token * args.columns;
    const auto column = [&](int e) {
      return line + turn_of(args.head, args.columns, args.adjacent, from + i + e).column;
    };
    const V c = load_numbers<S>(args.cos, args.table_dtype, length - i, column);
    const V s = load_numbers<S>(args.sin, args.table_dtype, length - i, column);
    V r;
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) {
      // Of neighbours the first is even; of halves, the first row.
      const bool negative = args.adjacent ? e % 2 == 0 : from == 0;
      r.v[e] = turned<S>(own.v[e], partner.v[e], c.v[e], negative ? -s.v[e] : s.v[e]);
    }
    return r;
  }
  PFC_HD void store(int from, int i, const V& value) const {
    item(to, from, i).template store<T>(args.out[place.which], value);
  }

  PFC_HD void finish(S mean, S scale) const {
    if (!present) return;
    const bool turns = args.cos != nullptr && place.which < 2;
    PFC_NO_UNROLL
    for (int i = begin(); i < length; i += kHeadLanes) {
      const V x = normal(0, i, mean, scale);
      V y{{x.v[1], x.v[0], x.v[3], x.v[2]}};
      if (rows == 2) y = normal(length, i, mean, scale);
      store(0, i, turns ? turn(0, i, x, y) : x);
      if (rows == 2) store(length, i, turns ? turn(length, i, y, x) : y);
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------- host
inline int64_t qk_tiles(const QkParams& p) { return (p.all + kHeadsInTile - 1) / kHeadsInTile; }

template <class T, class Launch>
auto dispatch_qk_typed(const QkArgs& args, Launch&& launch) {
  const int64_t heads = args.heads + 2 * args.kv_heads;
  const QkParams params{args, make_divider(heads), make_divider(args.tokens), args.batch * args.tokens * heads};
  Alignment alignment;
  alignment.add(args.qkv, args.dtype);
  for (int which = 0; which < 3; ++which)
    if (which == 0 ? args.heads > 0 : args.kv_heads > 0) alignment.add(args.out[which], args.dtype);
  // Rows of quads keep their alignment if the product's own strides do.
  const bool vector = args.head / head_rows(args) % kItem == 0 && args.batch_stride % kItem == 0 &&
                      args.token_stride % kItem == 0 && alignment.head(true) == 0;
  return vector ? launch(QkVariant<T, true>{}, params) : launch(QkVariant<T, false>{}, params);
}

// launch(variant, params) runs a kernel and returns what the caller wants to know.
template <class Launch>
auto dispatch_qk(const QkArgs& args, Launch&& launch) {
  switch (args.dtype) {
    case DType::kFloat32: return dispatch_qk_typed<float>(args, launch);
    case DType::kFloat64: return dispatch_qk_typed<double>(args, launch);
    case DType::kBFloat16: return dispatch_qk_typed<BFloat16>(args, launch);
    default: return dispatch_qk_typed<Float16>(args, launch);
  }
}

}  // namespace pfc::cuda
