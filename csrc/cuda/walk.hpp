// How the CUDA kernels walk a batch: from (tile, thread) to the elements that the thread works on. Plain index
// arithmetic on host and device alike, so that the tests prove on a CPU that every element is visited exactly once.
//
// A tile is the work of one block of threads. Work comes in items of up to four elements:
//   vector walk   an item is four consecutive elements, one 16-byte access of float32. Where samples matter (noise,
//                 guidance or times per sample) their size is a multiple of four, so that an item is one Philox block of
//                 one sample. Where they do not, the batch is one flat array, with up to three elements before the first
//                 vector and after the last: the edges.
//   ragged walk   any size, any alignment, element by element. Where samples matter an item is what there is of one
//                 Philox block, at most four consecutive elements; where not, the four are kThreads apart, so that
//                 neighbouring threads touch neighbouring elements.
#pragma once

#include <cstdint>

#include "../core/macros.hpp"

namespace pfc::cuda {

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kItem = 4;       // elements of an item, and normals of a Philox block

__extension__ typedef unsigned __int128 uint128_t;

// Exact division by a constant, for numerators below 2^63, by multiplication (Granlund & Montgomery 1994, theorem 4.2
// with N = 63): with 2^(shift) < divisor <= 2^(shift + 1), magic = floor(2^(64 + shift) / divisor) + 1. A magic of 0
// means 1.
struct Divider {
  uint64_t magic = 0;
  int shift = 0;
  int64_t divisor = 1;

  PFC_HD int64_t quotient(int64_t n) const {
    if (magic == 0) return n;
    const uint64_t high = static_cast<uint64_t>((static_cast<uint128_t>(static_cast<uint64_t>(n)) * magic) >> 64);
    return static_cast<int64_t>(high >> shift);
  }
};

inline Divider make_divider(int64_t divisor) {
  Divider d;
  d.divisor = divisor;
  if (divisor <= 1) return d;
  while (d.shift < 62 && (int64_t{2} << d.shift) < divisor) ++d.shift;
  d.magic = static_cast<uint64_t>((static_cast<uint128_t>(1) << (64 + d.shift)) / static_cast<uint64_t>(divisor)) + 1;
  return d;
}

struct Walk {
  int64_t numel = 0;   // elements of the batch
  int64_t sample = 0;  // elements of a sample
  int64_t items = 0;
  Divider per_sample;  // items of a sample; meant only if by_sample
  bool by_sample = false;
  int head = 0, tail = 0;  // edges of a flat vector walk
};

// Where an item lies: elements offset, offset + step, ..., `count` of them; 0 if there is no such item.
// sample and block, its Philox block, are meant only if the walk is by samples.
struct Item {
  int64_t offset, sample, block;
  int count;
};

// head is 0 where samples matter.
inline Walk vector_walk(int64_t batch, int64_t sample, bool by_sample, int head) {
  Walk w;
  w.numel = batch * sample;
  w.sample = sample;
  w.by_sample = by_sample;
  w.head = static_cast<int64_t>(head) < w.numel ? head : static_cast<int>(w.numel);
  w.items = (w.numel - w.head) / kItem;
  w.tail = static_cast<int>((w.numel - w.head) % kItem);
  if (by_sample) w.per_sample = make_divider(sample / kItem);
  return w;
}

inline Walk ragged_walk(int64_t batch, int64_t sample, bool by_sample) {
  Walk w;
  w.numel = batch * sample;
  w.sample = sample;
  w.by_sample = by_sample;
  if (by_sample) {
    w.per_sample = make_divider((sample + kItem - 1) / kItem);
    w.items = batch * w.per_sample.divisor;
  } else {
    constexpr int64_t kTile = int64_t{kItem} * kThreads;
    w.items = (w.numel + kTile - 1) / kTile * kThreads;
  }
  return w;
}

// Tiles of a walk in which a thread takes `vectors` items. A vector walk may have edges and no item.
inline int64_t tiles_of(const Walk& w, int vectors) {
  const int64_t tile = int64_t{kThreads} * vectors;
  const int64_t tiles = (w.items + tile - 1) / tile;
  return tiles > 0 ? tiles : 1;
}

// The item that a thread takes as its u-th of `vectors`: neighbouring threads have neighbouring items for every u.
PFC_HD int64_t item_of(int64_t tile, int thread, int vectors, int u) {
  return (tile * vectors + u) * kThreads + thread;
}

PFC_HD Item vector_item(const Walk& w, int64_t item) {
  Item place{w.head + item * kItem, 0, 0, item < w.items ? kItem : 0};
  if (w.by_sample) {
    place.sample = w.per_sample.quotient(item);
    place.block = item - place.sample * w.per_sample.divisor;
  }
  return place;
}

// which: 0, what comes before the vectors, or 1, what comes after.
PFC_HD Item edge_item(const Walk& w, int which) {
  return which == 0 ? Item{0, 0, 0, w.head} : Item{w.head + w.items * kItem, 0, 0, w.tail};
}

// Between the elements of an item of a ragged walk.
PFC_HD int ragged_step(const Walk& w) { return w.by_sample ? 1 : kThreads; }

PFC_HD Item ragged_item(const Walk& w, int64_t item) {
  Item place{0, 0, 0, 0};
  if (item >= w.items) return place;
  int64_t left;
  if (w.by_sample) {
    place.sample = w.per_sample.quotient(item);
    place.block = item - place.sample * w.per_sample.divisor;
    place.offset = place.sample * w.sample + place.block * kItem;
    left = w.sample - place.block * kItem;
  } else {
    const int64_t tile = item / kThreads;  // a power of two: a shift
    place.offset = tile * (kItem * kThreads) + item % kThreads;
    left = (w.numel - place.offset + kThreads - 1) / kThreads;
  }
  place.count = left >= kItem ? kItem : left > 0 ? static_cast<int>(left) : 0;
  return place;
}

}  // namespace pfc::cuda
