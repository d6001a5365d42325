// qk_norm_rope: what attention is given, from the one product that made queries, keys and values. A head's vector gets the
// product's bias, a norm over its own dimensions, and the rotation of its token's place (Su et al. 2021, section 3.2).
//
// A head lies in rows: one, or two where its halves turn with each other. Sums run in an order of their own, the same on every
// instruction set and device: kHeadLanes partial sums, of which the l-th adds the elements l, l + kHeadLanes, ... of the first
// row in order and then those of the second; then the upper half of the lanes is added to the lower, until one is left.
// Without multiply-adds and with an exact square root and division, every device gives the same bits.
#pragma once

#include "arguments.hpp"
#include "exact_math.hpp"

namespace pfc {

enum class HeadNorm : int { kNone, kRms, kLayer };

inline constexpr int kHeadLanes = 16;
inline constexpr int kMaxHead = 512;  // dimensions of a head

struct QkArgs {
  int64_t batch = 0, tokens = 0, heads = 0, kv_heads = 0;
  int head = 0;                                // dimensions of one
  DType dtype = DType::kFloat32;               // of qkv, q, k and v
  const void* qkv = nullptr;                   // (heads + 2 kv_heads) head consecutive elements for each token
  int64_t batch_stride = 0, token_stride = 0;  // elements, of qkv
  DType bias_dtype = DType::kFloat32, weight_dtype = DType::kFloat32, table_dtype = DType::kFloat32;
  const void* bias = nullptr;  // [(heads + 2 kv_heads) head], or null
  const void* weight[2] = {};  // [head] for queries and for keys, or null
  const void* shift[2] = {};   // likewise
  HeadNorm norm = HeadNorm::kNone;
  double eps = 0.0;
  const void* cos = nullptr;  // [tokens, columns], or null: nothing turns
  const void* sin = nullptr;
  int64_t table_batch = 0;  // elements from one sample's table to the next, 0 for a table that all share
  int columns = 0;          // head, or head / 2
  bool adjacent = true;     // 2k turns with 2k + 1; else k with k + head / 2
  void* out[3] = {};        // q, k, v: where the first token of the first head goes
  int64_t out_batch[3] = {}, out_head[3] = {};  // elements; tokens follow each other
  bool streaming = false;                       // outputs bypass the cache
};

// Which of q, k, v a head of the product belongs to, and its number there.
struct HeadPlace {
  int which;
  int64_t number;
};

PFC_HD HeadPlace head_place(int64_t heads, int64_t kv_heads, int64_t index) {
  if (index < heads) return {0, index};
  index -= heads;
  return index < kv_heads ? HeadPlace{1, index} : HeadPlace{2, index - kv_heads};
}

// Which column of the table turns dimension `i`, which dimension it turns with, and the sign of the sine.
struct Turn {
  int column, partner;
  bool negative;
};

PFC_HD Turn turn_of(int head, int columns, bool adjacent, int i) {
  const int half = head / 2;
  const bool first = adjacent ? (i & 1) == 0 : i < half;
  const int partner = adjacent ? i ^ 1 : first ? i + half : i - half;
  const int column = columns == head ? i : adjacent ? i >> 1 : first ? i : i - half;
  return {column, partner, first};
}

PFC_HD int head_rows(const QkArgs& args) { return args.cos != nullptr && !args.adjacent ? 2 : 1; }

// What a sum of squares becomes.
template <class S>
PFC_HD S inverse_deviation(S squares, int head, double eps) {
  return S(1) / exact::sqrt(squares / static_cast<S>(head) + static_cast<S>(eps));
}

template <class V>
PFC_HD V turned(V own, V partner, V cosine, V signed_sine) {
  return own * cosine + partner * signed_sine;
}

}  // namespace pfc
