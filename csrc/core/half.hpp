// bfloat16 and float16 <-> float32 by integer operations, round to nearest even: one routine for every instruction set
// and device. The templates take scalars or compiler vectors: F is float (or a vector of float), U the unsigned integer
// of the same width.
#pragma once

#include <cstdint>

#include "exact_math.hpp"

namespace pfc {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Selects with integer masks, because `mask ? a : b` means different things for scalars and vectors.
template <class U>
PFC_HD U select(U mask, U yes, U no) {
  return (mask & yes) | (~mask & no);
}

// All ones where a < b, as unsigned; a and b below 2^31. The subtraction's sign bit, spread.
template <class U>
PFC_HD U less_mask(U a, U b) {
  return (U{} - ((a - b) >> 31));
}

template <class F, class U>
PFC_HD F bfloat16_to_float(U bits) {
  return exact::bit_cast<F>(bits << 16);
}

template <class U, class F>
PFC_HD U float_to_bfloat16(F value) {
  const U bits = exact::bit_cast<U>(value);
  const U magnitude = bits & 0x7fffffffu;
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U quiet = (bits >> 16) | 0x0040u;
  return select<U>(less_mask<U>(U{} + 0x7f800000u, magnitude), quiet, rounded);
}

template <class F, class U>
PFC_HD F float16_to_float(U bits) {
  const U magnitude = (bits & 0x7fffu) << 13;
  // 2^112 moves the exponent bias from 15 to 127 and normalises subnormals on the way, exactly.
  const F scaled = exact::bit_cast<F>(magnitude) * 0x1p112f;
  const U finite = exact::bit_cast<U>(scaled);
  // Infinity, or a NaN made quiet, as hardware makes it.
  const U special = magnitude | 0x7f800000u | (less_mask<U>(U{} + 0x0f800000u, magnitude) & 0x00400000u);
  const U result = select<U>(less_mask<U>(U{} + 0x0f7fffffu, magnitude), special, finite);
  return exact::bit_cast<F>(result | ((bits & 0x8000u) << 16));
}

template <class U, class F>
PFC_HD U float_to_float16(F value) {
  const U bits = exact::bit_cast<U>(value);
  const U magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the sum with 1/2 leaves the rounded subnormal in the low bits of the mantissa.
  const F shifted = exact::bit_cast<F>(magnitude) + 0.5f;
  const U subnormal = exact::bit_cast<U>(shifted) - 0x3f000000u;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U finite = select<U>(less_mask<U>(magnitude, U{} + 0x38800000u), subnormal, normal);
  // 65520 and above round to infinity.
  const U bounded = select<U>(less_mask<U>(U{} + 0x477fefffu, magnitude), U{} + 0x7c00u, finite);
  const U nan = ((magnitude >> 13) & 0x3ffu) | 0x7e00u;
  const U result = select<U>(less_mask<U>(U{} + 0x7f800000u, magnitude), nan, bounded);
  return result | ((bits >> 16) & 0x8000u);
}

}  // namespace pfc
