// Standard normals from Philox words by the Box-Muller transform, bit-identical everywhere (see exact_math.hpp).
// Words (r0, r1) give normals 0 and 1 of a block, (r2, r3) normals 2 and 3.
#pragma once

#include "exact_math.hpp"
#include "philox.hpp"

namespace pfc {

// 24 bits and a half: (k + 1/2) 2^-24. Never 0, so log is finite; the largest normal is 5.89.
PFC_HD float uniform24(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 8)) + 0.5f) * 0x1p-24f;
}

// The angle 2 pi (w / 2^32) is reduced to an octant on the integer: the top three bits name the octant, the next 24 the
// place in it; odd octants are mirrored, which is exact there.
PFC_HD void box_muller(uint32_t radius_word, uint32_t angle_word, float& first, float& second) {
  const float radius = exact::sqrt(-2.0f * exact::log(uniform24(radius_word)));
  const uint32_t octant = angle_word >> 29;
  uint32_t place = (angle_word >> 5) & 0x00ffffffu;
  place = (octant & 1u) ? 0x00ffffffu - place : place;
  const float angle = (static_cast<float>(static_cast<int32_t>(place)) + 0.5f) * (0x1p-24f * 0.78539816339744831f);
  const float s = exact::sin_octant(angle);
  const float c = exact::cos_octant(angle);
  // Octants 1, 2, 5, 6 swap sine and cosine; the sine is negative in 4..7, the cosine in 2..5.
  const bool swap = ((octant + 1u) & 2u) != 0u;
  const uint32_t sine_sign = (octant & 4u) << 29;
  const uint32_t cosine_sign = ((octant + 2u) & 4u) << 29;
  const float sine = exact::bit_cast<float>(exact::bit_cast<uint32_t>(swap ? c : s) ^ sine_sign);
  const float cosine = exact::bit_cast<float>(exact::bit_cast<uint32_t>(swap ? s : c) ^ cosine_sign);
  first = radius * cosine;
  second = radius * sine;
}

struct NormalBlock {
  float value[4];
};

PFC_HD NormalBlock normal_block(uint64_t seed, uint32_t stream, uint32_t draw, uint64_t block) {
  const PhiloxBlock r = philox_block(seed, stream, draw, block);
  NormalBlock n;
  box_muller(r.word[0], r.word[1], n.value[0], n.value[1]);
  box_muller(r.word[2], r.word[3], n.value[2], n.value[3]);
  return n;
}

}  // namespace pfc
