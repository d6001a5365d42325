// The operators between the matrix products of a transformer block: norm with modulation, gated residuals, GELU and SwiGLU.
// What kernels take, and the arithmetic of one element, or one vector of elements, shared by every instruction set and CUDA.
//
// A tensor is rows of `width` elements; `tokens` rows after each other belong to one sample and share its shift, scale and gate,
// rows of a [B, width] view whose own rows may lie apart (a chunk of the modulation's projection). S is what is computed in:
// float, or double for float64; memory holds `dtype`.
#pragma once

#include "arguments.hpp"

namespace pfc {

// A row of numbers for each sample, or one for all of them (stride 0); absent if data is null.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;  // elements between two samples' rows
};

// x_out = x + gate (y + y_bias), if y is there, and out = norm(x_out) weight + bias, (1 + scale) of it plus shift, if out is.
struct NormArgs {
  int64_t rows = 0, width = 0, tokens = 1;
  DType dtype = DType::kFloat32;
  bool rms = false;  // without the mean
  double eps = 0.0;
  const void* x = nullptr;
  const void* y = nullptr;
  void* x_out = nullptr;  // with y; may be x
  void* out = nullptr;
  const void* y_bias = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  Rows gate, shift, scale;
  bool streaming = false;  // outputs bypass the cache
};

enum class Gated : int { kGELU, kGELUTanh, kSwiGLU };

// out = f(x + bias), elementwise; for SwiGLU x's rows have 2 width elements and out = silu(first half) second half.
struct GatedArgs {
  int64_t rows = 0, width = 0;  // of out
  DType dtype = DType::kFloat32;
  Gated kind = Gated::kGELU;
  const void* x = nullptr;
  const void* bias = nullptr;
  void* out = nullptr;  // may be x, but not for SwiGLU
  bool streaming = false;
};

// ------------------------------------------------------------------------------------------------------------- sums
// A row's sums are those of kNormLanes lanes, lane l of the elements l, l + kNormLanes, ..., added in that order; then lane l
// and l + 64 are added, l and l + 32, ... and so on, to the last two. So they depend on the row alone: not on its place in
// the batch, the threads, the instruction set or the device.
inline constexpr int kNormLanes = 128;

// What is left to say of a row once its sums are known: norm(x) = rstd (d - delta), with d = x - center.
//
// float32 cannot hold the mean of a row whose spread is a thousandth of it, so `center` is the mean as rounded and delta what
// the rest of it is, the mean of d. d is exact, or nearly, where it matters.
template <class S>
struct RowNorm {
  S center, delta, rstd;
};

template <class S>
PFC_HD S row_mean(S sum, int64_t width) {
  return sum / static_cast<S>(width);
}

// sum and squares: of d and d^2. For RMS d is x, and the sum is not looked at.
template <class S>
PFC_HD RowNorm<S> row_norm(const NormArgs& args, S center, S sum, S squares) {
  const S count = static_cast<S>(args.width);
  const S delta = args.rms ? S(0) : sum / count;
  const S variance = squares / count - delta * delta;
  // Rounding may leave less than nothing of a constant row; a NaN stays one.
  const S positive = variance < S(0) ? S(0) : variance;
  return {center, delta, S(1) / exact::sqrt(positive + static_cast<S>(args.eps))};
}

// --------------------------------------------------------------------------------------------------------- elements
// `memory` has the rows' elements at the place at hand: y(), y_bias(), gate(), weight(), bias(), scale(), shift().
template <class V, class Memory>
PFC_HD V residual_element(const NormArgs& args, V x, const Memory& memory) {
  V y = memory.y();
  if (args.y_bias) y = y + memory.y_bias();
  if (args.gate.data) y = memory.gate() * y;
  return x + y;
}

template <class V, class S, class Memory>
PFC_HD V norm_element(const NormArgs& args, const RowNorm<S>& row, V x, const Memory& memory) {
  V h = row.rstd * ((x - row.center) - row.delta);
  if (args.weight) h = h * memory.weight();
  if (args.bias) h = h + memory.bias();
  if (args.scale.data) h = h * (S(1) + memory.scale());
  if (args.shift.data) h = h + memory.shift();
  return h;
}

}  // namespace pfc
