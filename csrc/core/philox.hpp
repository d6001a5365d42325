// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
// "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Known answers are in the tests.
//
// The meaning of the counter is the library's promise: (block low, block high, draw, stream), keyed by the seed of the
// sample. Nothing about batch, position, thread or device enters it.
#pragma once

#include <cstdint>

#include "macros.hpp"

namespace pfc {

struct PhiloxBlock {
  uint32_t word[4];
};

// What the draws of a sample are for; draws of different streams never meet.
enum class Stream : uint32_t {
  kInitial = 0,
  kPlan = 1,
  kProbe = 2,
  kTraining = 3,
  kTrainingTime = 4,
  kLabelDrop = 5,
  kDataOrder = 6
};

PFC_HD PhiloxBlock philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  // Fully unrolled by every compiler we build with: ten is a constant.
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

PFC_HD PhiloxBlock philox_block(uint64_t seed, uint32_t stream, uint32_t draw, uint64_t block) {
  return philox4x32_10(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), draw, stream,
                       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

}  // namespace pfc
