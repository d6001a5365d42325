// GELU and SwiGLU on the CPU. Every element goes through the same vector code, those that fill no vector as well: an
// element's bits do not depend on its place.
#pragma once

#include "../core/block.hpp"
#include "../core/gelu.hpp"
#include "activation.hpp"

namespace pfc::cpu {
namespace {

// In float32 where the multiply-add is fused, otherwise by way of float64.
template <class S, Gated kKind>
PFC_INLINE Native<S> gate_function(const Native<S>& z) {
  constexpr Activation kActivation = kKind == Gated::kGELU       ? Activation::kGELU
                                     : kKind == Gated::kGELUTanh ? Activation::kGELUTanh
                                                                 : Activation::kSiLU;
  if constexpr (sizeof(S) == 4 && kFused && kKind == Gated::kGELU) {
    return activation::gelu32<Math>(z);
  } else if constexpr (sizeof(S) == 4 && kFused && kKind == Gated::kGELUTanh) {
    return activation::gelu_tanh32<Math>(z);
  } else {
    Native<S> value{};
    with_activation<S, false>(kActivation, 0.0, [&](const auto& f) { value = f(z).value; });
    return value;
  }
}

// A native vector's first `count` elements, zeros after them.
template <class S>
PFC_INLINE Native<S> load_some(const void* base, DType dtype, int64_t i, int count) {
  alignas(64) S part[Wide<S>::kLanes] = {};
  for (int k = 0; k < count; ++k) part[k] = load_one<S>(base, dtype, i + k);
  return load_bytes<Native<S>>(part);
}

template <class S, DType kDType, Gated kKind>
inline void gated_range(const GatedArgs& given, int64_t begin, int64_t end) {
  // A copy whose address stays here: the stores below cannot change it, so its pointers stay in registers.
  const GatedArgs args = given;
  constexpr int kLanes = Wide<S>::kLanes;
  constexpr bool kPair = kKind == Gated::kSwiGLU;
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / args.width;
    const int64_t stop = end < (row + 1) * args.width ? end : (row + 1) * args.width;
    // What an element of `out` is to be moved by to find its operands.
    const int64_t to_x = kPair ? row * args.width : 0, to_bias = -row * args.width;
    const auto value = [&](const auto& load, int64_t at) __attribute__((always_inline)) {
      Native<S> z = load(args.x, at + to_x);
      if (args.bias) z = z + load(args.bias, at + to_bias);
      Native<S> f = gate_function<S, kKind>(z);
      if constexpr (kPair) {
        Native<S> other = load(args.x, at + to_x + args.width);
        if (args.bias) other = other + load(args.bias, at + to_bias + args.width);
        f = f * other;
      }
      return f;
    };
    const auto whole = [&](const void* base, int64_t at)
                           __attribute__((always_inline)) { return load_native<S>(base, kDType, at); };
    for (; i + kLanes <= stop; i += kLanes) store_native<S>(args.out, kDType, i, value(whole, i), args.streaming);
    if (i < stop) {
      const int count = static_cast<int>(stop - i);
      const auto some = [&](const void* base, int64_t at) { return load_some<S>(base, kDType, at, count); };
      const Native<S> last = value(some, i);
      for (int k = 0; k < count; ++k) store_one<S>(args.out, kDType, i + k, last[k]);
      i = stop;
    }
  }
  if (args.streaming) finish_streaming();
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
