// Vectors for the CPU kernels: a few native vectors handled as one value, by the compiler's vector extension. Included
// only by files that are compiled once per instruction set, so everything is always_inline or in an unnamed namespace:
// a weak symbol from here could win at link time and run AVX-512 code on a machine that has none.
#pragma once

#include <cstdint>

#include "../core/arguments.hpp"
#include "../core/half.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define PFC_NATIVE_BYTES 64
#define PFC_UNROLL 4
#elif defined(__AVX2__)
#define PFC_NATIVE_BYTES 32
#define PFC_UNROLL 2
#else
#define PFC_NATIVE_BYTES 16
#define PFC_UNROLL 4
#endif

namespace pfc::cpu {
namespace {

#define PFC_INLINE inline __attribute__((always_inline))

template <class T, int N>
struct NativeOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};

// kUnroll native vectors of S.
template <class S>
struct Wide {
  static constexpr int kLanes = PFC_NATIVE_BYTES / sizeof(S);
  static constexpr int kUnroll = PFC_UNROLL;
  static constexpr int kSize = kLanes * kUnroll;
  using Native = typename NativeOf<S, kLanes>::type;
  using Float = typename NativeOf<float, kLanes>::type;
  using Bits = typename NativeOf<uint32_t, kLanes>::type;
  using Short = typename NativeOf<uint16_t, kLanes>::type;
  Native part[kUnroll] = {};

  friend PFC_INLINE Wide operator+(Wide a, const Wide& b) {
    for (int u = 0; u < kUnroll; ++u) a.part[u] = a.part[u] + b.part[u];
    return a;
  }
  friend PFC_INLINE Wide operator-(Wide a, const Wide& b) {
    for (int u = 0; u < kUnroll; ++u) a.part[u] = a.part[u] - b.part[u];
    return a;
  }
  friend PFC_INLINE Wide operator*(S s, Wide a) {
    for (int u = 0; u < kUnroll; ++u) a.part[u] = s * a.part[u];
    return a;
  }
};

template <class T>
PFC_INLINE T load_bytes(const void* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(T));
  return value;
}

// float16 by the machine's instruction where there is one, which gives the bits of core/half.hpp.
template <class S>
PFC_INLINE typename Wide<S>::Float widen_float16(const typename Wide<S>::Short& raw) {
  using W = Wide<S>;
#if defined(__F16C__)
  if constexpr (W::kLanes == 8) {
    const __m256 wide = _mm256_cvtph_ps(load_bytes<__m128i>(&raw));
    return load_bytes<typename W::Float>(&wide);
  }
#endif
#if defined(__AVX512F__)
  if constexpr (W::kLanes == 16) {
    const __m512 wide = _mm512_cvtph_ps(load_bytes<__m256i>(&raw));
    return load_bytes<typename W::Float>(&wide);
  }
#endif
  return float16_to_float<typename W::Float>(__builtin_convertvector(raw, typename W::Bits));
}

template <class S>
PFC_INLINE typename Wide<S>::Short narrow_float16(const typename Wide<S>::Float& value) {
  using W = Wide<S>;
#if defined(__F16C__)
  if constexpr (W::kLanes == 8) {
    const __m128i half = _mm256_cvtps_ph(load_bytes<__m256>(&value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return load_bytes<typename W::Short>(&half);
  }
#endif
#if defined(__AVX512F__)
  if constexpr (W::kLanes == 16) {
    const __m256i half = _mm512_cvtps_ph(load_bytes<__m512>(&value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return load_bytes<typename W::Short>(&half);
  }
#endif
  return __builtin_convertvector(float_to_float16<typename W::Bits>(value), typename W::Short);
}

// A bfloat16's bits in the upper half of each float, where they are rounded to; the lower half is not cleared. The bits of
// core/half.hpp, in fewer operations where a comparison makes a mask.
template <class S>
PFC_INLINE typename Wide<S>::Bits rounded_to_bfloat16(const typename Wide<S>::Float& value) {
  using Bits = typename Wide<S>::Bits;
  const Bits bits = (Bits)value;
  const Bits odd = (bits >> 16) & 1u;
  return value != value ? bits | 0x00400000u : bits + odd + 0x7fffu;
}

// A native vector of S from memory of another type.
template <class S>
PFC_INLINE typename Wide<S>::Native load_native(const void* base, DType dtype, int64_t i) {
  using W = Wide<S>;
  if constexpr (sizeof(S) == 4) {
    if (dtype == DType::kFloat32) return load_bytes<typename W::Native>(static_cast<const float*>(base) + i);
  } else {
    if (dtype == DType::kFloat64) return load_bytes<typename W::Native>(static_cast<const double*>(base) + i);
  }
  typename W::Float value;
  switch (dtype) {
    case DType::kFloat32: value = load_bytes<typename W::Float>(static_cast<const float*>(base) + i); break;
    case DType::kFloat64: {
      using Doubles = typename NativeOf<double, W::kLanes>::type;
      value = __builtin_convertvector(load_bytes<Doubles>(static_cast<const double*>(base) + i), typename W::Float);
      break;
    }
    case DType::kBFloat16: {
      const auto raw = load_bytes<typename W::Short>(static_cast<const uint16_t*>(base) + i);
      value = bfloat16_to_float<typename W::Float>(__builtin_convertvector(raw, typename W::Bits));
      break;
    }
    default: {
      const auto raw = load_bytes<typename W::Short>(static_cast<const uint16_t*>(base) + i);
      value = widen_float16<S>(raw);
      break;
    }
  }
  return __builtin_convertvector(value, typename W::Native);
}

// Streaming stores bypass the cache; the address must be a multiple of the vector's size, or of a cache line.
template <class T>
PFC_INLINE void store_bytes(void* to, const T& value, bool streaming) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 64) {
    if (streaming) return _mm512_stream_si512(static_cast<__m512i*>(to), load_bytes<__m512i>(&value));
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 32) {
    if (streaming) return _mm256_stream_si256(static_cast<__m256i*>(to), load_bytes<__m256i>(&value));
  }
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(T) == 16) {
    if (streaming) return _mm_stream_si128(static_cast<__m128i*>(to), load_bytes<__m128i>(&value));
  }
#endif
  __builtin_memcpy(to, &value, sizeof(T));
}

PFC_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Calls put(pointer, cast value) with `value` cast to the dtype of memory.
template <class S, class Put>
PFC_INLINE void cast_native(void* base, DType dtype, const typename Wide<S>::Native& value, const Put& put) {
  using W = Wide<S>;
  switch (dtype) {
    case DType::kFloat32: return put(static_cast<float*>(base), __builtin_convertvector(value, typename W::Float));
    case DType::kFloat64: {
      using Doubles = typename NativeOf<double, W::kLanes>::type;
      return put(static_cast<double*>(base), __builtin_convertvector(value, Doubles));
    }
    case DType::kBFloat16: {
      const auto bits = rounded_to_bfloat16<S>(__builtin_convertvector(value, typename W::Float));
      return put(static_cast<uint16_t*>(base), __builtin_convertvector(bits >> 16, typename W::Short));
    }
    default:
      return put(static_cast<uint16_t*>(base), narrow_float16<S>(__builtin_convertvector(value, typename W::Float)));
  }
}

template <class S>
PFC_INLINE void store_native(void* base, DType dtype, int64_t i, const typename Wide<S>::Native& value,
                             bool streaming) {
  cast_native<S>(base, dtype, value, [&](auto* to, const auto& cast) { store_bytes(to + i, cast, streaming); });
}

// The same for one or two copies, `stride` elements apart: the usual numbers of branches, without a loop.
template <class S>
PFC_INLINE void store_pair(void* base, DType dtype, int64_t i, const typename Wide<S>::Native& value, bool streaming,
                           bool second, int64_t stride) {
  cast_native<S>(base, dtype, value, [&](auto* to, const auto& cast) {
    store_bytes(to + i, cast, streaming);
    if (second) store_bytes(to + i + stride, cast, streaming);
  });
}

template <class S>
PFC_INLINE S load_one(const void* base, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<S>(static_cast<const float*>(base)[i]);
    case DType::kFloat64:
      // Through float32 for a float32 state, as the vector path does.
      return static_cast<S>(static_cast<const double*>(base)[i]);
    case DType::kBFloat16:
      return static_cast<S>(bfloat16_to_float<float, uint32_t>(static_cast<const uint16_t*>(base)[i]));
    default: return static_cast<S>(float16_to_float<float, uint32_t>(static_cast<const uint16_t*>(base)[i]));
  }
}

template <class S>
PFC_INLINE void store_one(void* base, DType dtype, int64_t i, S value) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(base)[i] = static_cast<float>(value); break;
    case DType::kFloat64: static_cast<double*>(base)[i] = static_cast<double>(value); break;
    case DType::kBFloat16:
      static_cast<uint16_t*>(base)[i] =
          static_cast<uint16_t>(float_to_bfloat16<uint32_t, float>(static_cast<float>(value)));
      break;
    default:
      static_cast<uint16_t*>(base)[i] =
          static_cast<uint16_t>(float_to_float16<uint32_t, float>(static_cast<float>(value)));
      break;
  }
}

}  // namespace
}  // namespace pfc::cpu
