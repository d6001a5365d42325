// Normals for a run of elements of a batch, into a float32 buffer: the one place on the CPU where Philox is walked.
#pragma once

#include "../core/normal.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

// Philox blocks made at once. The loops below are plain so that the compiler vectorises them over the blocks.
inline constexpr int kBlocks = 64;

struct BlockBatch {
  uint32_t c0[kBlocks], c1[kBlocks], k0[kBlocks], k1[kBlocks];
  alignas(64) float out[4 * kBlocks];
};

PFC_INLINE void make_normals(BlockBatch& batch, uint32_t stream, uint32_t draw) {
  alignas(64) uint32_t w0[kBlocks], w1[kBlocks], w2[kBlocks], w3[kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    const PhiloxBlock r = philox4x32_10(batch.c0[i], batch.c1[i], draw, stream, batch.k0[i], batch.k1[i]);
    w0[i] = r.word[0];
    w1[i] = r.word[1];
    w2[i] = r.word[2];
    w3[i] = r.word[3];
  }
  alignas(64) float n0[kBlocks], n1[kBlocks], n2[kBlocks], n3[kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    box_muller(w0[i], w1[i], n0[i], n1[i]);
    box_muller(w2[i], w3[i], n2[i], n3[i]);
  }
  for (int i = 0; i < kBlocks; ++i) {
    batch.out[4 * i + 0] = n0[i];
    batch.out[4 * i + 1] = n1[i];
    batch.out[4 * i + 2] = n2[i];
    batch.out[4 * i + 3] = n3[i];
  }
}

// out[0 .. end-begin) = the normals of flat elements begin .. end of a [batch, sample] array. Small samples share a
// batch of blocks, so that two-dimensional data is vectorised too.
inline void fill_normals(const int64_t* seeds, int64_t sample, uint32_t stream, uint32_t draw, int64_t begin,
                         int64_t end, float* out) {
  BlockBatch batch;
  struct Piece {
    int64_t to;
    int lane, count;
  } piece[kBlocks];
  int64_t i = begin;
  int64_t row = begin / sample;
  int64_t element = begin - row * sample;
  while (i < end) {
    int used = 0;
    int64_t to = i - begin;
    bool straight = true;  // every block whole and in order: copy in one go
    while (used < kBlocks && i < end) {
      const uint64_t seed = static_cast<uint64_t>(seeds[row]);
      const uint64_t block = static_cast<uint64_t>(element) >> 2;
      const int lane = static_cast<int>(element & 3);
      int64_t count = 4 - lane;
      if (count > sample - element) count = sample - element;
      if (count > end - i) count = end - i;
      batch.c0[used] = static_cast<uint32_t>(block);
      batch.c1[used] = static_cast<uint32_t>(block >> 32);
      batch.k0[used] = static_cast<uint32_t>(seed);
      batch.k1[used] = static_cast<uint32_t>(seed >> 32);
      piece[used] = {i - begin, lane, static_cast<int>(count)};
      straight = straight && count == 4;
      ++used;
      i += count;
      element += count;
      if (element == sample) {
        element = 0;
        ++row;
      }
    }
    for (int k = used; k < kBlocks; ++k) batch.c0[k] = batch.c1[k] = batch.k0[k] = batch.k1[k] = 0;
    make_normals(batch, stream, draw);
    if (straight) {
      __builtin_memcpy(out + to, batch.out, sizeof(float) * 4 * static_cast<unsigned long>(used));
    } else {
      for (int k = 0; k < used; ++k)
        for (int n = 0; n < piece[k].count; ++n) out[piece[k].to + n] = batch.out[4 * k + piece[k].lane + n];
    }
  }
}

}  // namespace
}  // namespace pfc::cpu
