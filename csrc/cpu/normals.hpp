// Normals for a run of elements of a batch, into a float32 buffer: the one place on the CPU where Philox is walked.
#pragma once

#include "../core/normal.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

// Philox blocks made at once. The loops below are plain so that the compiler vectorises them over the blocks.
inline constexpr int kBlocks = 64;

struct Words {
  alignas(64) uint32_t w0[kBlocks], w1[kBlocks], w2[kBlocks], w3[kBlocks];

  PFC_INLINE void set(int i, const PhiloxBlock& r) {
    w0[i] = r.word[0];
    w1[i] = r.word[1];
    w2[i] = r.word[2];
    w3[i] = r.word[3];
  }
};

PFC_INLINE void write_normals(const Words& w, float* out) {
  alignas(64) float n0[kBlocks], n1[kBlocks], n2[kBlocks], n3[kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    box_muller(w.w0[i], w.w1[i], n0[i], n1[i]);
    box_muller(w.w2[i], w.w3[i], n2[i], n3[i]);
  }
  for (int i = 0; i < kBlocks; ++i) {
    out[4 * i + 0] = n0[i];
    out[4 * i + 1] = n1[i];
    out[4 * i + 2] = n2[i];
    out[4 * i + 3] = n3[i];
  }
}

// kBlocks whole blocks of one sample, in order. The low word of the counter must not wrap on the way.
PFC_INLINE void straight_normals(uint64_t seed, uint32_t stream, uint32_t draw, uint64_t first_block, float* out) {
  const uint32_t low = static_cast<uint32_t>(first_block), high = static_cast<uint32_t>(first_block >> 32);
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  Words words;
  for (int i = 0; i < kBlocks; ++i)
    words.set(i, philox4x32_10(low + static_cast<uint32_t>(i), high, draw, stream, k0, k1));
  write_normals(words, out);
}

// Blocks of several samples, or parts of blocks: gathered, so that two-dimensional data is vectorised too.
struct Gathered {
  uint32_t c0[kBlocks], c1[kBlocks], k0[kBlocks], k1[kBlocks];
  int64_t to[kBlocks];
  int lane[kBlocks], count[kBlocks];
  int used = 0;

  PFC_INLINE void add(uint64_t seed, uint64_t block, int first_lane, int lanes, int64_t position) {
    c0[used] = static_cast<uint32_t>(block);
    c1[used] = static_cast<uint32_t>(block >> 32);
    k0[used] = static_cast<uint32_t>(seed);
    k1[used] = static_cast<uint32_t>(seed >> 32);
    to[used] = position;
    lane[used] = first_lane;
    count[used++] = lanes;
  }

  PFC_INLINE void write(uint32_t stream, uint32_t draw, float* out) {
    for (int k = used; k < kBlocks; ++k) c0[k] = c1[k] = k0[k] = k1[k] = 0;
    Words words;
    for (int i = 0; i < kBlocks; ++i) words.set(i, philox4x32_10(c0[i], c1[i], draw, stream, k0[i], k1[i]));
    alignas(64) float made[4 * kBlocks];
    write_normals(words, made);
    for (int k = 0; k < used; ++k)
      for (int n = 0; n < count[k]; ++n) out[to[k] + n] = made[4 * k + lane[k] + n];
    used = 0;
  }
};

// out[0 .. end-begin) = the normals of flat elements begin .. end of a [batch, sample] array.
inline void fill_normals(const int64_t* seeds, int64_t sample, uint32_t stream, uint32_t draw, int64_t begin,
                         int64_t end, float* out) {
  constexpr int64_t kRun = 4 * kBlocks;
  Gathered gathered;
  int64_t row = begin / sample;
  int64_t element = begin - row * sample;
  for (int64_t i = begin; i < end;) {
    const uint64_t seed = static_cast<uint64_t>(seeds[row]);
    const uint64_t block = static_cast<uint64_t>(element) >> 2;
    const int lane = static_cast<int>(element & 3);
    const int64_t left = sample - element < end - i ? sample - element : end - i;
    int64_t count;
    if (lane == 0 && left >= kRun && static_cast<uint32_t>(block) <= UINT32_MAX - kBlocks) {
      straight_normals(seed, stream, draw, block, out + (i - begin));
      count = kRun;
    } else {
      count = 4 - lane < left ? 4 - lane : left;
      gathered.add(seed, block, lane, static_cast<int>(count), i - begin);
      if (gathered.used == kBlocks) gathered.write(stream, draw, out);
    }
    i += count;
    element += count;
    if (element == sample) {
      element = 0;
      ++row;
    }
  }
  if (gathered.used > 0) gathered.write(stream, draw, out);
}

}  // namespace
}  // namespace pfc::cpu
