// Numbers of a dtype that is known at run time: parameters, times, tables. Compiles for the host as well.
#pragma once

#include "pack.hpp"

namespace pfc::cuda {

template <class S>
PFC_HD S load_number(const void* base, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat32: return decode<S>(static_cast<const float*>(base)[i]);
    case DType::kFloat64: return decode<S>(static_cast<const double*>(base)[i]);
    case DType::kBFloat16: return decode<S>(static_cast<const BFloat16*>(base)[i]);
    default: return decode<S>(static_cast<const Float16*>(base)[i]);
  }
}

// at(e) for the first `count` of a pack: one decision for all of them.
template <class S, class T, class At>
PFC_HD Pack<S, kItem> load_numbers_of(const void* base, int count, const At& at) {
  Pack<S, kItem> r{};
  PFC_FULL_UNROLL
  for (int e = 0; e < kItem; ++e)
    if (e < count) r.v[e] = decode<S>(static_cast<const T*>(base)[at(e)]);
  return r;
}
template <class S, class At>
PFC_HD Pack<S, kItem> load_numbers(const void* base, DType dtype, int count, const At& at) {
  switch (dtype) {
    case DType::kFloat32: return load_numbers_of<S, float>(base, count, at);
    case DType::kFloat64: return load_numbers_of<S, double>(base, count, at);
    case DType::kBFloat16: return load_numbers_of<S, BFloat16>(base, count, at);
    default: return load_numbers_of<S, Float16>(base, count, at);
  }
}

}  // namespace pfc::cuda
