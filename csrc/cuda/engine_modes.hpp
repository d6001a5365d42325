// The tiles and blocks that ship: small ones for batches that would leave multiprocessors idle, large ones for the others.
#pragma once

#include "engine_exact.cuh"
#include "engine_mma.cuh"

namespace pfc::cuda {

using ExactSmall = Exact<float, 2, 1, 4, 4>;
using ExactLarge = Exact<float, 4, 2, 8, 2>;
using DoubleSmall = Exact<double, 1, 1, 4, 4>;
using DoubleLarge = Exact<double, 2, 2, 8, 2>;
using TF32Small = TensorCores<TF32Operand, 2, 1, 4, 4>;
using TF32Large = TensorCores<TF32Operand, 4, 2, 8, 2>;
using BFloat16Small = TensorCores<BFloat16Operand, 2, 1, 4, 4>;
using BFloat16Large = TensorCores<BFloat16Operand, 4, 2, 8, 2>;

template <class Small, class Large>
struct Modes {};

// call(Modes<Small, Large>{}) with the modes that the arguments ask for.
template <class Call>
auto with_modes(const EngineArgs& args, Call&& call) {
  if (args.plan.network.dtype == DType::kFloat64) return call(Modes<DoubleSmall, DoubleLarge>{});
  if (args.precision == Precision::kTF32) return call(Modes<TF32Small, TF32Large>{});
  if (args.precision == Precision::kBFloat16) return call(Modes<BFloat16Small, BFloat16Large>{});
  return call(Modes<ExactSmall, ExactLarge>{});
}

}  // namespace pfc::cuda
