// Values of a thread: Pack, what the functors of core/ compute on, and its way from and to memory of any dtype.
// Compiles for the host as well, where the tests run the kernels' bodies thread by thread.
#pragma once

#include "../core/arguments.hpp"
#include "../core/half.hpp"
#include "walk.hpp"

// Loops over the elements of a Pack must vanish, or it would live in local memory.
#if defined(__CUDA_ARCH__)
#define PFC_FULL_UNROLL _Pragma("unroll")
#define PFC_ASSUME(fact) __builtin_assume(fact)
#else
#define PFC_FULL_UNROLL
#define PFC_ASSUME(fact) static_cast<void>(fact)
#endif

namespace pfc::cuda {

template <class S, int N>
struct Pack {
  S v[N];

  friend PFC_HD Pack operator+(const Pack& a, const Pack& b) {
    Pack r;
    PFC_FULL_UNROLL
    for (int i = 0; i < N; ++i) r.v[i] = a.v[i] + b.v[i];
    return r;
  }
  friend PFC_HD Pack operator-(const Pack& a, const Pack& b) {
    Pack r;
    PFC_FULL_UNROLL
    for (int i = 0; i < N; ++i) r.v[i] = a.v[i] - b.v[i];
    return r;
  }
  friend PFC_HD Pack operator*(S s, const Pack& a) {
    Pack r;
    PFC_FULL_UNROLL
    for (int i = 0; i < N; ++i) r.v[i] = s * a.v[i];
    return r;
  }
};

// A number for each item of a thread: the guidance scales of their samples.
template <class S, int N>
struct PerItem {
  S v[N];

  friend PFC_HD PerItem operator-(const PerItem& s, int one) {
    PerItem r;
    PFC_FULL_UNROLL
    for (int u = 0; u < N; ++u) r.v[u] = s.v[u] - static_cast<S>(one);
    return r;
  }
  friend PFC_HD Pack<S, N * kItem> operator*(const PerItem& s, const Pack<S, N * kItem>& a) {
    Pack<S, N * kItem> r;
    PFC_FULL_UNROLL
    for (int i = 0; i < N * kItem; ++i) r.v[i] = s.v[i / kItem] * a.v[i];
    return r;
  }
};

// Four elements in memory, in one access of 8 or 16 bytes (two for float64).
inline constexpr int kAccess = 16;
template <class T>
struct alignas(sizeof(T) * kItem < kAccess ? sizeof(T) * kItem : kAccess) Quad {
  T v[kItem];
};

template <class T>
PFC_HD Quad<T> read_quad(const T* from) {
  return *reinterpret_cast<const Quad<T>*>(from);
}

// Loads of a Quad become one instruction by themselves; the compiler may split stores into its members, hence the PTX.
template <class T>
PFC_HD void write_quad(T* to, const Quad<T>& quad) {
#if defined(__CUDA_ARCH__)
  struct Words {
    uint32_t w[sizeof(Quad<T>) / 4];
  };
  const Words words = exact::bit_cast<Words>(quad);
  if constexpr (sizeof(Quad<T>) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words.w[0]), "r"(words.w[1]) : "memory");
  } else {
    PFC_FULL_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(Words) / 4); i += 4)
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(reinterpret_cast<uint32_t*>(to) + i),
                   "r"(words.w[i]), "r"(words.w[i + 1]), "r"(words.w[i + 2]), "r"(words.w[i + 3])
                   : "memory");
  }
#else
  *reinterpret_cast<Quad<T>*>(to) = quad;
#endif
}

template <class S>
PFC_HD S decode(float value) {
  return static_cast<S>(value);
}
template <class S>
PFC_HD S decode(double value) {
  return static_cast<S>(value);
}
template <class S>
PFC_HD S decode(BFloat16 value) {
  return static_cast<S>(bfloat16_to_float<float, uint32_t>(value.bits));
}
template <class S>
PFC_HD S decode(Float16 value) {
  return static_cast<S>(float16_to_float<float, uint32_t>(value.bits));
}

template <class T>
struct Encode;
template <>
struct Encode<float> {
  template <class S>
  static PFC_HD float from(S value) {
    return static_cast<float>(value);
  }
};
template <>
struct Encode<double> {
  template <class S>
  static PFC_HD double from(S value) {
    return static_cast<double>(value);
  }
};
template <>
struct Encode<BFloat16> {
  template <class S>
  static PFC_HD BFloat16 from(S value) {
    return {static_cast<uint16_t>(float_to_bfloat16<uint32_t, float>(static_cast<float>(value)))};
  }
};
template <>
struct Encode<Float16> {
  template <class S>
  static PFC_HD Float16 from(S value) {
    return {static_cast<uint16_t>(float_to_float16<uint32_t, float>(static_cast<float>(value)))};
  }
};

// The items of one thread and how it accesses them: kVector, one Quad each; otherwise element by element.
template <bool kVector, int N>
struct Items {
  Item item[N];
  int step;

  template <class S, class T>
  PFC_HD Pack<S, N * kItem> load(const void* base) const {
    Pack<S, N * kItem> r{};
    PFC_FULL_UNROLL
    for (int u = 0; u < N; ++u) {
      const T* from = static_cast<const T*>(base) + item[u].offset;
      if constexpr (kVector) {
        if (item[u].count > 0) {
          const Quad<T> quad = read_quad<T>(from);
          PFC_FULL_UNROLL
          for (int e = 0; e < kItem; ++e) r.v[u * kItem + e] = decode<S>(quad.v[e]);
        }
      } else {
        PFC_FULL_UNROLL
        for (int e = 0; e < kItem; ++e)
          if (e < item[u].count) r.v[u * kItem + e] = decode<S>(from[e * step]);
      }
    }
    return r;
  }

  template <class T, class S>
  PFC_HD void store(void* base, const Pack<S, N * kItem>& value) const {
    PFC_FULL_UNROLL
    for (int u = 0; u < N; ++u) {
      T* to = static_cast<T*>(base) + item[u].offset;
      if constexpr (kVector) {
        Quad<T> quad;
        PFC_FULL_UNROLL
        for (int e = 0; e < kItem; ++e) quad.v[e] = Encode<T>::from(value.v[u * kItem + e]);
        if (item[u].count > 0) write_quad<T>(to, quad);
      } else {
        PFC_FULL_UNROLL
        for (int e = 0; e < kItem; ++e)
          if (e < item[u].count) to[e * step] = Encode<T>::from(value.v[u * kItem + e]);
      }
    }
  }
};

// The items of a thread in a tile; the first may be absent (count 0), and then all are.
template <bool kVector, int N>
PFC_HD Items<kVector, N> items_of(const Walk& walk, int64_t tile, int thread) {
  Items<kVector, N> items;
  items.step = kVector ? 1 : ragged_step(walk);
  PFC_FULL_UNROLL
  for (int u = 0; u < N; ++u) {
    const int64_t item = item_of(tile, thread, N, u);
    items.item[u] = kVector ? vector_item(walk, item) : ragged_item(walk, item);
  }
  return items;
}

// ---------------------------------------------------------------------------------------------------------------- host
inline int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Finds the number of elements after which every buffer of a launch is aligned for Quads.
class Alignment {
 public:
  void add(const void* pointer, DType dtype) {
    if (pointer == nullptr) return;
    const int64_t bytes = bytes_of(dtype);
    const int64_t access = bytes * kItem < kAccess ? bytes * kItem : kAccess;
    for (int head = 0; head < kItem; ++head)
      possible_[head] = possible_[head] &&
                        (reinterpret_cast<uintptr_t>(pointer) + static_cast<uintptr_t>(head * bytes)) % access == 0;
  }
  // -1 if there is none; only 0 may be asked for where samples matter.
  int head(bool zero_only) const {
    for (int head = 0; head < (zero_only ? 1 : kItem); ++head)
      if (possible_[head]) return head;
    return -1;
  }

 private:
  bool possible_[kItem] = {true, true, true, true};
};

}  // namespace pfc::cuda
