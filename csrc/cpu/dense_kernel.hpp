// A layer on a tile of samples: z = start (+ add) + W h. Lanes are outputs, so that each output has its chains in order of k
// (core/network.hpp) whatever the tile is: a block of samples by a few vectors of outputs stays in registers, and for each k
// the weights' vectors are loaded once and multiplied by the samples' h_k, broadcast. Totals rest in `out` between chains.
#pragma once

#include <utility>

#include "activation.hpp"

namespace pfc::cpu {
namespace {

// The block: samples by vectors of outputs. 24 sums of 32 registers with AVX-512, 12 of 16 with AVX2; without a fused
// multiply-add the product needs a register as well.
#if defined(__AVX512F__)
inline constexpr int kBlockSamples = 6, kBlockVectors = 4;
#elif defined(__AVX2__)
inline constexpr int kBlockSamples = 6, kBlockVectors = 2;
#else
inline constexpr int kBlockSamples = 4, kBlockVectors = 2;
#endif

// Sums in flight below which a multiply-add's latency, not its rate, is the time of a block.
inline constexpr int kFewSums = 4;

template <class S>
inline constexpr int kVectorsInPanel = kPanel / Wide<S>::kLanes;

// Products over at most so many k at a time: the weights of a block of outputs then stay in the first-level cache while all
// samples of a tile pass. Whole chains, so that no bit depends on it.
inline constexpr int kBlockInputs = 128;
static_assert(kBlockInputs % kChain == 0);

// One number in every lane. (0 + c would be an addition: it turns -0 into 0.)
template <class V, class S, int... kLane>
PFC_INLINE V broadcast_lanes(S c, std::integer_sequence<int, kLane...>) {
  return V{((void)kLane, c)...};
}
template <class S>
PFC_INLINE Native<S> broadcast(S c) {
  return broadcast_lanes<Native<S>>(c, std::make_integer_sequence<int, Wide<S>::kLanes>{});
}

template <class S>
struct Block {
  const S* h;
  int64_t h_stride;
  int count;  // of k
  const S* weights;
  int64_t panel;  // elements between panels
  const S* start;
  int64_t start_stride;
  const S* add;  // or null
  int64_t add_stride;
  S* out;
  int64_t out_stride;
};

template <class S, int kSamples, int kVectors>
__attribute__((noinline)) void multiply_block(const Block<S>& given) {
  using V = Native<S>;
  constexpr int kLanes = Wide<S>::kLanes, kPer = kVectorsInPanel<S>;
  const Block<S> b = given;
  const S* row[kSamples];
#pragma GCC unroll 8
  for (int i = 0; i < kSamples; ++i) row[i] = b.h + i * b.h_stride;
  const S* w = b.weights;
  const S* total = b.start;
  int64_t total_stride = b.start_stride;
  const S* add = b.add;
  int k = 0;
  // `kChains` whole chains from k on, or what is left of one.
  const auto pass = [&]<int kChains>(std::integral_constant<int, kChains>) __attribute__((always_inline)) {
    V sum[kChains][kSamples][kVectors] = {};
    const int count = b.count - k < kChain ? b.count - k : kChain;
    for (const S* end = w + static_cast<int64_t>(count) * kPanel; w < end; ++k, w += kPanel) {
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) {
        V weight[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j)
          weight[j] = load_bytes<V>(w + c * kChain * kPanel + (j / kPer) * b.panel + (j % kPer) * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kSamples; ++i) {
          const V h = broadcast<S>(row[i][k + c * kChain]);
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) sum[c][i][j] = Math::mul_add(weight[j], h, sum[c][i][j]);
        }
      }
    }
    k += (kChains - 1) * kChain;
    w += (kChains - 1) * kChain * kPanel;
#pragma GCC unroll 8
    for (int i = 0; i < kSamples; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        V z = load_bytes<V>(total + i * total_stride + j * kLanes);
        if (add) z = z + load_bytes<V>(add + i * b.add_stride + j * kLanes);
#pragma GCC unroll 8
        for (int c = 0; c < kChains; ++c) z = z + sum[c][i][j];
        store_bytes(b.out + i * b.out_stride + j * kLanes, z, false);
      }
    total = b.out;
    total_stride = b.out_stride;
    add = nullptr;
  };
  // A block of few sums waits for each of its multiply-adds: two chains at a time wait together.
  if constexpr (kSamples * kVectors <= kFewSums)
    while (b.count - k >= 2 * kChain) pass(std::integral_constant<int, 2>{});
  if (k > 0 && k == b.count) return;
  // Once at least: without inputs, what is to be written is where the sums begin.
  do {
    pass(std::integral_constant<int, 1>{});
  } while (k < b.count);
}

template <class S>
using MultiplyBlock = void (*)(const Block<S>&);

// [samples - 1][vectors - 1]
template <class S>
struct BlockTable {
  MultiplyBlock<S> at[kBlockSamples][kBlockVectors];

  template <int... kAll>
  static constexpr BlockTable make(std::integer_sequence<int, kAll...>) {
    BlockTable table{};
    ((table.at[kAll / kBlockVectors][kAll % kBlockVectors] =
          &multiply_block<S, kAll / kBlockVectors + 1, kAll % kBlockVectors + 1>),
     ...);
    return table;
  }
};
template <class S>
inline constexpr BlockTable<S> kBlockTable =
    BlockTable<S>::make(std::make_integer_sequence<int, kBlockSamples * kBlockVectors>{});

// One product of a layer, or of one of layer 0's parts.
template <class S>
struct Dense {
  const S* h;
  int64_t h_stride;
  int in, out;
  const S* weights;
  const S* start;
  int64_t start_stride;
  const S* add = nullptr;
  int64_t add_stride = 0;
  S* to = nullptr;
  int64_t to_stride = 0;
};

// Runs `finish(sample, samples, element, elements)` on each block once its sums are whole, while they are in the cache.
// Elements beyond `out`, up to a whole vector, are written and mean nothing.
template <class S, class Finish>
inline void multiply(const Dense<S>& d, int64_t n, const Finish& finish) {
  constexpr int kLanes = Wide<S>::kLanes, kPer = kVectorsInPanel<S>;
  const int64_t panel = static_cast<int64_t>(d.in) * kPanel;
  const int vectors = (d.out + kLanes - 1) / kLanes;
  const int64_t blocks = (n + kBlockSamples - 1) / kBlockSamples;
  for (int v = 0; v < vectors; v += kBlockVectors) {
    const int width = vectors - v < kBlockVectors ? vectors - v : kBlockVectors;
    const int64_t element = static_cast<int64_t>(v) * kLanes;
    int k = 0;
    do {
      const int count = d.in - k < kBlockInputs ? d.in - k : kBlockInputs;
      const bool first = k == 0, last = k + count == d.in;
      Block<S> block;
      block.count = count;
      block.panel = panel;
      block.weights = d.weights + (v / kPer) * panel + (v % kPer) * kLanes + static_cast<int64_t>(k) * kPanel;
      block.h_stride = d.h_stride;
      block.out_stride = d.to_stride;
      block.start_stride = first ? d.start_stride : d.to_stride;
      block.add_stride = d.add_stride;
      // Blocks of nearly equal numbers of samples.
      for (int64_t b = 0, i = 0; b < blocks; ++b) {
        const int64_t samples = (n - i) / (blocks - b);
        block.h = d.h + i * d.h_stride + k;
        block.out = d.to + i * d.to_stride + element;
        block.start = first ? d.start + i * d.start_stride + element : block.out;
        block.add = first && d.add ? d.add + i * d.add_stride + element : nullptr;
        kBlockTable<S>.at[samples - 1][width - 1](block);
        if (last) finish(i, samples, element, static_cast<int64_t>(width) * kLanes);
        i += samples;
      }
      k += count;
    } while (k < d.in);
  }
}

}  // namespace
}  // namespace pfc::cpu
