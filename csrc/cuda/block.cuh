// The operators of transformer blocks on CUDA: what one thread does, and which kernel a call needs. Compiles for the host as
// well, for the tests.
//
// Norms and residuals: a warp takes a row, a thread four neighbouring lanes of core/block.hpp's sums: its items are four
// elements, 128 apart, so that a warp's access is one run of memory. Rows of up to kMostHeld elements stay in registers between
// the passes; longer ones are read again, from the caches. Activations: an item of four elements a thread.
#pragma once

#include "../core/block.hpp"
#include "../core/gelu.hpp"
#include "engine_activation.cuh"
#include "pack.hpp"

namespace pfc::cuda {

inline constexpr int kRowThreads = 32;                     // a warp
inline constexpr int kBlockRows = kThreads / kRowThreads;  // rows of a block
static_assert(kRowThreads * kItem == kNormLanes);

// ------------------------------------------------------------------------------------------------------------- norms
struct NormParams {
  NormArgs args;
  Divider tokens;
};

// S what is computed in, T what memory holds, kHeld items that a thread keeps (0: none, any width), kVector whether items are
// aligned and whole.
template <class S_, class T_, int kHeld_, bool kVector_>
struct NormVariant {
  using S = S_;
  using T = T_;
  static constexpr int kHeld = kHeld_;
  static constexpr bool kVector = kVector_;
};
inline constexpr int kMostHeld = 2048;

// The step-th item of a lane, from the beginning of its row.
PFC_HD Item norm_item(int lane, int64_t step, int64_t width) {
  const int64_t offset = step * kNormLanes + lane * kItem;
  const int64_t left = width - offset;
  return {offset, 0, 0, left >= kItem ? kItem : left > 0 ? static_cast<int>(left) : 0};
}

// What one thread does for its row: take, then deviate (layer norm only), then finish, with a sum over the warp between them.
template <class C>
struct NormThread {
  using S = typename C::S;
  using T = typename C::T;
  using V = Pack<S, kItem>;

  const NormArgs& args;
  int64_t first, gate, shift, scale;  // where the row begins in each
  int lane;
  V held[C::kHeld > 0 ? C::kHeld : 1];

  // A row that is: the caller leaves others out.
  PFC_HD NormThread(const NormParams& p, int64_t row, int thread) : args(p.args), lane(thread % kRowThreads) {
    const int64_t sample = p.tokens.quotient(row);
    first = row * args.width;
    gate = sample * args.gate.stride;
    shift = sample * args.shift.stride;
    scale = sample * args.scale.stride;
  }

  // Items of a row: kHeld of them, of which some may be absent, or as many as there are.
  template <class Part>
  PFC_HD void items(const Part& part) {
    if constexpr (C::kHeld > 0) {
      PFC_FULL_UNROLL
      for (int step = 0; step < C::kHeld; ++step) {
        const Item item = norm_item(lane, step, args.width);
        if (item.count > 0) part(item, held[step]);
      }
    } else {
      const int64_t steps = (args.width + kNormLanes - 1) / kNormLanes;
      PFC_NO_UNROLL
      for (int64_t step = 0; step < steps; ++step) {
        const Item item = norm_item(lane, step, args.width);
        if (item.count > 0) part(item, held[0]);
      }
    }
  }

  static PFC_HD Items<C::kVector, 1> at(const Item& item, int64_t begin) {
    return {{{begin + item.offset, 0, 0, item.count}}, 1};
  }
  PFC_HD V load(const void* base, const Item& item, int64_t begin) const {
    return base != nullptr ? at(item, begin).template load<S, T>(base) : V{};
  }

  // Memory of core/block.hpp for one element of a thread's.
  struct Element {
    S y_, y_bias_, gate_, weight_, bias_, scale_, shift_;
    PFC_HD S y() const { return y_; }
    PFC_HD S y_bias() const { return y_bias_; }
    PFC_HD S gate() const { return gate_; }
    PFC_HD S weight() const { return weight_; }
    PFC_HD S bias() const { return bias_; }
    PFC_HD S scale() const { return scale_; }
    PFC_HD S shift() const { return shift_; }
  };

  // The row's elements from memory, the residual's sum written; as it is stored.
  PFC_HD V taken(const Item& item) const {
    V x = load(args.x, item, first);
    if (args.y == nullptr) return x;
    const V y = load(args.y, item, first), y_bias = load(args.y_bias, item, 0), g = load(args.gate.data, item, gate);
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) {
      const Element element{y.v[e], y_bias.v[e], g.v[e], S(0), S(0), S(0), S(0)};
      x.v[e] = decode<S>(Encode<T>::from(residual_element(args, x.v[e], element)));
    }
    at(item, first).template store<T>(args.x_out, x);
    return x;
  }
  PFC_HD V again(const Item& item, const V& kept) const {
    if constexpr (C::kHeld > 0) return kept;
    return load(args.y != nullptr ? args.x_out : args.x, item, first);
  }

  // Sums, or sums of squares, of the thread's four lanes. Elements beyond the row are zero.
  PFC_HD V take() {
    V sum{};
    items([&](const Item& item, V& kept) {
      const V x = taken(item);
      if constexpr (C::kHeld > 0) kept = x;
      sum = sum + (args.rms ? squared(x) : x);
    });
    return sum;
  }
  PFC_HD void deviate(S center, V& sum, V& squares) {
    sum = squares = V{};
    items([&](const Item& item, V& kept) {
      V d = again(item, kept);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) d.v[e] = e < item.count ? d.v[e] - center : S(0);
      sum = sum + d;
      squares = squares + squared(d);
    });
  }
  PFC_HD void finish(const RowNorm<S>& norm) {
    items([&](const Item& item, V& kept) {
      V h = again(item, kept);
      const V w = load(args.weight, item, 0), b = load(args.bias, item, 0);
      const V more = load(args.scale.data, item, scale), add = load(args.shift.data, item, shift);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) {
        const Element element{S(0), S(0), S(0), w.v[e], b.v[e], more.v[e], add.v[e]};
        h.v[e] = norm_element(args, norm, h.v[e], element);
      }
      at(item, first).template store<T>(args.out, h);
    });
  }

  static PFC_HD V squared(V x) {
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) x.v[e] = x.v[e] * x.v[e];
    return x;
  }
};

// The last two halvings of a sum, after those over the warp's threads.
template <class S>
PFC_HD S lanes_joined(const Pack<S, kItem>& sum) {
  return (sum.v[0] + sum.v[2]) + (sum.v[1] + sum.v[3]);
}

// --------------------------------------------------------------------------------------------------------- activations
struct GatedParams {
  GatedArgs args;
  Divider width;
  int64_t items = 0;  // whole ones, and one more for what is left over
};

template <class S_, class T_, bool kVector_>
struct GatedVariant {
  using S = S_;
  using T = T_;
  static constexpr bool kVector = kVector_;
};

// Divisions are IEEE's; only the multiply-adds are fused, as core/gelu.hpp needs.
struct FusedMath {
  static PFC_HD float mul_add(float a, float b, float c) { return DeviceMath::mul_add(a, b, c); }
};

// T is what the result is stored as: half types take fewer operations.
template <class S, class T>
PFC_HD S gate_function(Gated kind, S z) {
  if constexpr (sizeof(S) == 8) {
    return ExactActivation::one(kind == Gated::kGELU       ? Activation::kGELU
                                : kind == Gated::kGELUTanh ? Activation::kGELUTanh
                                                           : Activation::kSiLU,
                                0.0, z);
  } else if constexpr (sizeof(T) == 2) {
    constexpr int kDigits = std::is_same_v<T, BFloat16> ? 8 : 11;
    if (kind == Gated::kGELU) return activation::gelu_half<FusedMath, kDigits>(z);
    if (kind == Gated::kGELUTanh) return activation::gelu_tanh_half<FusedMath, kDigits>(z);
    return activation::silu_half<FusedMath, kDigits>(z);
  } else {
    if (kind == Gated::kGELU) return activation::gelu32<FusedMath>(z);
    if (kind == Gated::kGELUTanh) return activation::gelu_tanh32<FusedMath>(z);
    return activation::silu32<FusedMath>(z);
  }
}

// Elements offset, ..., offset + count - 1 of out, which lie in one row; x and bias say where their operands begin.
struct GatedPlace {
  int64_t offset, x, bias;
  int count;
};

PFC_HD GatedPlace gated_place(const GatedParams& p, int64_t offset, int count) {
  const int64_t row = p.width.quotient(offset);
  const int64_t column = offset - row * p.args.width;
  return {offset, p.args.kind == Gated::kSwiGLU ? offset + row * p.args.width : offset, column, count};
}

template <class C>
struct GatedThread {
  using S = typename C::S;
  using T = typename C::T;
  using V = Pack<S, kItem>;

  template <bool kWhole>
  static PFC_HD void part(const GatedArgs& args, const GatedPlace& place) {
    const auto operand = [&](int64_t second) {
      V z = Items<kWhole, 1>{{{place.x + second, 0, 0, place.count}}, 1}.template load<S, T>(args.x);
      if (args.bias != nullptr)
        z = z + Items<kWhole, 1>{{{place.bias + second, 0, 0, place.count}}, 1}.template load<S, T>(args.bias);
      return z;
    };
    V z = operand(0);
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) z.v[e] = gate_function<S, T>(args.kind, z.v[e]);
    if (args.kind == Gated::kSwiGLU) {
      const V other = operand(args.width);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; ++e) z.v[e] = z.v[e] * other.v[e];
    }
    Items<kWhole, 1>{{{place.offset, 0, 0, place.count}}, 1}.template store<T>(args.out, z);
  }

  static PFC_HD void run(const GatedParams& p, int64_t tile, int thread) {
    const int64_t numel = p.args.rows * p.args.width;
    if constexpr (C::kVector) {
      const int64_t item = tile * kThreads + thread;
      if (item >= p.items) return;
      const int64_t left = numel - item * kItem;
      if (left >= kItem)
        part<true>(p.args, gated_place(p, item * kItem, kItem));
      else
        part<false>(p.args, gated_place(p, item * kItem, static_cast<int>(left)));
    } else {
      // Neighbouring threads have neighbouring elements.
      PFC_NO_UNROLL
      for (int e = 0; e < kItem; ++e) {
        const int64_t offset = (tile * kItem + e) * kThreads + thread;
        if (offset < numel) part<false>(p.args, gated_place(p, offset, 1));
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------- host
template <class Use>
auto with_block_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat32: return use(0.0f, 0.0f);
    case DType::kFloat64: return use(0.0, 0.0);
    case DType::kBFloat16: return use(0.0f, BFloat16{});
    default: return use(0.0f, Float16{});
  }
}

// Every row of every operand begins where a Quad may.
inline bool norm_aligned(const NormArgs& args) {
  Alignment alignment;
  for (const void* pointer : {args.x, args.y, static_cast<const void*>(args.x_out), static_cast<const void*>(args.out),
                              args.y_bias, args.weight, args.bias, args.gate.data, args.shift.data, args.scale.data})
    alignment.add(pointer, args.dtype);
  return args.width % kItem == 0 && args.gate.stride % kItem == 0 && args.shift.stride % kItem == 0 &&
         args.scale.stride % kItem == 0 && alignment.head(true) == 0;
}

inline int64_t norm_tiles(const NormArgs& args) { return (args.rows + kBlockRows - 1) / kBlockRows; }

// launch(NormVariant, params).
template <class Launch>
auto dispatch_norm(const NormArgs& args, const Launch& launch) {
  const NormParams params{args, make_divider(args.tokens)};
  return with_block_type(args.dtype, [&]<class S, class T>(S, T) {
    if (!norm_aligned(args)) return launch(NormVariant<S, T, 0, false>{}, params);
    if constexpr (sizeof(S) == 4) {
      if (args.out != nullptr && args.width <= 4 * kNormLanes) return launch(NormVariant<S, T, 4, true>{}, params);
      if (args.out != nullptr && args.width <= 9 * kNormLanes) return launch(NormVariant<S, T, 9, true>{}, params);
      if (args.out != nullptr && args.width <= kMostHeld) return launch(NormVariant<S, T, 16, true>{}, params);
    }
    return launch(NormVariant<S, T, 0, true>{}, params);
  });
}

// launch(GatedVariant, params, tiles).
template <class Launch>
auto dispatch_gated(const GatedArgs& args, const Launch& launch) {
  GatedParams params{args, make_divider(args.width)};
  Alignment alignment;
  alignment.add(args.x, args.dtype);
  alignment.add(args.bias, args.dtype);
  alignment.add(args.out, args.dtype);
  const bool vector = alignment.head(true) == 0 && (args.rows == 1 || args.width % kItem == 0) &&
                      (args.kind != Gated::kSwiGLU || args.width % kItem == 0);
  params.items = (args.rows * args.width + kItem - 1) / kItem;
  const int64_t tiles = (params.items + kThreads - 1) / kThreads;
  return with_block_type(args.dtype, [&]<class S, class T>(S, T) {
    return vector ? launch(GatedVariant<S, T, true>{}, params, tiles)
                  : launch(GatedVariant<S, T, false>{}, params, tiles);
  });
}

}  // namespace pfc::cuda
