// GELU and SwiGLU on the CPU. Every element goes through the same vector code, those that fill no vector as well: an
// element's bits do not depend on its place.
#pragma once

#include "../core/block.hpp"
#include "../core/gelu.hpp"
#include "activation.hpp"
#include "two.hpp"

namespace pfc::cpu {
namespace {

// float32 as core/gelu.hpp has it where the multiply-add is fused, otherwise by way of float64; half precision as it has that.
template <class S, DType kDType, Gated kKind>
PFC_INLINE Native<S> gate_function(const Native<S>& z) {
  constexpr Activation kActivation = kKind == Gated::kGELU       ? Activation::kGELU
                                     : kKind == Gated::kGELUTanh ? Activation::kGELUTanh
                                                                 : Activation::kSiLU;
  if constexpr (kDType == DType::kBFloat16 || kDType == DType::kFloat16) {
    constexpr int kDigits = kDType == DType::kBFloat16 ? 8 : 11;
    if constexpr (kKind == Gated::kGELU) return activation::gelu_half<Math, kDigits>(z);
    if constexpr (kKind == Gated::kGELUTanh) return activation::gelu_tanh_half<Math, kDigits>(z);
    return activation::silu_half<Math, kDigits>(z);
  } else if constexpr (sizeof(S) == 4 && kFused) {
    if constexpr (kKind == Gated::kGELU) return activation::gelu32<Math>(z);
    if constexpr (kKind == Gated::kGELUTanh) return activation::gelu_tanh32<Math>(z);
    return activation::silu32<Math>(z);
  } else {
    Native<S> value{};
    with_activation<S, false>(kActivation, 0.0, [&](const auto& f) { value = f(z).value; });
    return value;
  }
}

template <class S, DType kDType, Gated kKind, bool kBias>
inline void gated_range(const GatedArgs& given, int64_t begin, int64_t end) {
  // A copy whose address stays here: the stores below cannot change it, so its pointers stay in registers.
  const GatedArgs args = given;
  constexpr bool kPair = kKind == Gated::kSwiGLU;
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / args.width;
    const int64_t stop = end < (row + 1) * args.width ? end : (row + 1) * args.width;
    // What an element of `out` is to be moved by to find its operands.
    const int64_t to_x = kPair ? row * args.width : 0, to_bias = -row * args.width;
    const auto value = [&](const auto& load, int64_t at) __attribute__((always_inline)) {
      Two<S> z = load(args.x, at + to_x), other{};
      if constexpr (kPair) other = load(args.x, at + to_x + args.width);
      if constexpr (kBias) {
        const Two<S> bias = load(args.bias, at + to_bias);
        z = both<S>([&](int u) { return z.part[u] + bias.part[u]; });
        if constexpr (kPair) {
          const Two<S> more = load(args.bias, at + to_bias + args.width);
          other = both<S>([&](int u) { return other.part[u] + more.part[u]; });
        }
      }
      return both<S>([&](int u) __attribute__((always_inline)) {
        const Native<S> f = gate_function<S, kDType, kKind>(z.part[u]);
        return kPair ? f * other.part[u] : f;
      });
    };
    const auto whole = [&](const void* base, int64_t at)
                           __attribute__((always_inline)) { return load_two<S, kDType>(base, at); };
    for (; i + kTwo<S> <= stop; i += kTwo<S>) store_two<S, kDType>(args.out, i, value(whole, i), args.streaming);
    if (i < stop) {
      const int64_t count = stop - i;
      const auto some = [&](const void* base, int64_t at) { return load_some<S, kDType>(base, at, count); };
      store_some<S, kDType>(args.out, i, value(some, i), count);
      i = stop;
    }
  }
  if (args.streaming) finish_streaming();
}

template <class S, DType kDType, Gated kKind>
inline void gated_range(const GatedArgs& args, int64_t begin, int64_t end) {
  args.bias ? gated_range<S, kDType, kKind, true>(args, begin, end)
            : gated_range<S, kDType, kKind, false>(args, begin, end);
}

template <class S, DType kDType>
inline void gated_of(const GatedArgs& args, int64_t begin, int64_t end) {
  switch (args.kind) {
    case Gated::kGELU: return gated_range<S, kDType, Gated::kGELU>(args, begin, end);
    case Gated::kGELUTanh: return gated_range<S, kDType, Gated::kGELUTanh>(args, begin, end);
    default: return gated_range<S, kDType, Gated::kSwiGLU>(args, begin, end);
  }
}

// Elements begin to end of out.
inline void gated(const GatedArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::kFloat32: return gated_of<float, DType::kFloat32>(args, begin, end);
    case DType::kFloat64: return gated_of<double, DType::kFloat64>(args, begin, end);
    case DType::kBFloat16: return gated_of<float, DType::kBFloat16>(args, begin, end);
    default: return gated_of<float, DType::kFloat16>(args, begin, end);
  }
}

}  // namespace
}  // namespace pfc::cpu
