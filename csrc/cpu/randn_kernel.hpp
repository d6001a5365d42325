// randn on the CPU: normals straight into the output, through a small buffer where the output is not float32.
#pragma once

#include "normals.hpp"

namespace pfc::cpu {
namespace {

inline void normals(const NormalArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat32) {
    fill_normals(args.seeds, args.sample, args.stream, args.draw, begin, end, static_cast<float*>(args.out) + begin);
    return;
  }
  constexpr int64_t kPiece = 256;
  float buffer[kPiece];
  for (int64_t i = begin; i < end; i += kPiece) {
    const int64_t stop = i + kPiece < end ? i + kPiece : end;
    fill_normals(args.seeds, args.sample, args.stream, args.draw, i, stop, buffer);
    for (int64_t k = i; k < stop; ++k) store_one<float>(args.out, args.dtype, k, buffer[k - i]);
  }
}

}  // namespace
}  // namespace pfc::cpu
