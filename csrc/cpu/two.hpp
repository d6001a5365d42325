// Two native vectors at a time, of kTwo elements that follow each other in memory, whatever their dtype: half precision is read and
// written by the native vector, not by half of one.
//
// Of bfloat16 the first vector has the even elements and the second the odd ones, which costs an operation each to take apart
// and two to join; of the others, the first half and the second. `element_of` says which. So whoever only computes element by
// element, with operands that were read in the same way, need not care.
#pragma once

#include "vec.hpp"

namespace pfc::cpu {
namespace {

template <class S>
inline constexpr int kTwo = 2 * Wide<S>::kLanes;

template <class S>
struct Two {
  using V = typename Wide<S>::Native;
  V part[2];

  friend PFC_INLINE Two operator+(const Two& a, const Two& b) {
    return {{a.part[0] + b.part[0], a.part[1] + b.part[1]}};
  }
  friend PFC_INLINE Two operator*(const Two& a, const Two& b) {
    return {{a.part[0] * b.part[0], a.part[1] * b.part[1]}};
  }
  friend PFC_INLINE Two operator-(const Two& a, S b) { return {{a.part[0] - b, a.part[1] - b}}; }
};

// Calls f(u) for both vectors and gives what it returns.
template <class S, class F>
PFC_INLINE Two<S> both(const F& f) {
  return {{f(0), f(1)}};
}

template <class S, DType kDType>
PFC_INLINE int element_of(int part, int lane) {
  return kDType == DType::kBFloat16 ? 2 * lane + part : part * Wide<S>::kLanes + lane;
}

template <class S, DType kDType>
PFC_INLINE Two<S> load_two(const void* base, int64_t i) {
  using V = typename Wide<S>::Native;
  if constexpr (kDType == DType::kBFloat16) {
    using Bits = typename Wide<S>::Bits;
    const Bits raw = load_bytes<Bits>(static_cast<const uint16_t*>(base) + i);
    return {{(V)(raw << 16), (V)(raw & 0xffff0000u)}};
  } else {
    return {{load_native<S>(base, kDType, i), load_native<S>(base, kDType, i + Wide<S>::kLanes)}};
  }
}

// What memory of kDType keeps of them.
template <class S, DType kDType>
PFC_INLINE Two<S> as_stored(const Two<S>& value) {
  using V = typename Wide<S>::Native;
  if constexpr (kDType == DType::kBFloat16) {
    return both<S>([&](int u) { return (V)(rounded_to_bfloat16<S>(value.part[u]) & 0xffff0000u); });
  } else if constexpr (kDType == DType::kFloat16) {
    return both<S>([&](int u) { return widen_float16<S>(narrow_float16<S>(value.part[u])); });
  } else {
    return value;
  }
}

// Streaming: as store_bytes; the address must then be a multiple of the native vector's size.
template <class S, DType kDType>
PFC_INLINE void store_two(void* base, int64_t i, const Two<S>& value, bool streaming) {
  if constexpr (kDType == DType::kBFloat16) {
    using Bits = typename Wide<S>::Bits;
    const Bits even = rounded_to_bfloat16<S>(value.part[0]), odd = rounded_to_bfloat16<S>(value.part[1]);
    store_bytes(static_cast<uint16_t*>(base) + i, (even >> 16) | (odd & 0xffff0000u), streaming);
  } else {
    store_native<S>(base, kDType, i, value.part[0], streaming);
    store_native<S>(base, kDType, i + Wide<S>::kLanes, value.part[1], streaming);
  }
}

template <DType kDType>
inline constexpr int kBytes = kDType == DType::kFloat64   ? 8
                              : kDType == DType::kFloat32 ? 4
                                                          : 2;

// The first `count` of kTwo elements, the others 0.
template <class S, DType kDType>
PFC_INLINE Two<S> load_some(const void* base, int64_t i, int64_t count) {
  alignas(64) char part[kTwo<S> * kBytes<kDType>] = {};
  __builtin_memcpy(part, static_cast<const char*>(base) + i * kBytes<kDType>, count * kBytes<kDType>);
  return load_two<S, kDType>(part, 0);
}

template <class S, DType kDType>
PFC_INLINE void store_some(void* base, int64_t i, const Two<S>& value, int64_t count) {
  alignas(64) char part[kTwo<S> * kBytes<kDType>];
  store_two<S, kDType>(part, 0, value, false);
  __builtin_memcpy(static_cast<char*>(base) + i * kBytes<kDType>, part, count * kBytes<kDType>);
}

// Has the second-level cache read kCount bytes of what will soon be needed; whether they exist does not matter.
template <int kCount>
PFC_INLINE void fetch_ahead(const void* base, int64_t at) {
  for (int line = 0; line < kCount; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + at + line), 0, 2);
}

// Both vectors as they are, in memory of S.
template <class S>
PFC_INLINE Two<S> get_two(const S* from) {
  using V = typename Wide<S>::Native;
  return {{load_bytes<V>(from), load_bytes<V>(from + Wide<S>::kLanes)}};
}
template <class S>
PFC_INLINE void put_two(S* to, const Two<S>& value) {
  store_bytes(to, value.part[0], false);
  store_bytes(to + Wide<S>::kLanes, value.part[1], false);
}

}  // namespace
}  // namespace pfc::cpu
