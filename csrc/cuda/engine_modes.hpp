// The tiles and blocks that ship: small ones for batches that would leave multiprocessors idle, large ones for the others.
#pragma once

#include "engine_exact.cuh"

namespace pfc::cuda {

using ExactSmall = Exact<float, 2, 1, 4, 4>;
using ExactLarge = Exact<float, 4, 2, 8, 2>;
using DoubleSmall = Exact<double, 1, 1, 4, 4>;
using DoubleLarge = Exact<double, 2, 2, 8, 2>;

template <class Small, class Large>
struct Modes {};

// call(Modes<Small, Large>{}) with the modes that the arguments ask for.
template <class Call>
auto with_modes(const EngineArgs& args, Call&& call) {
  if (args.plan.network.dtype == DType::kFloat64) return call(Modes<DoubleSmall, DoubleLarge>{});
  return call(Modes<ExactSmall, ExactLarge>{});
}

}  // namespace pfc::cuda
