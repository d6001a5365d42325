// patchify and unpatchify: an image [B, C, rows p, columns q] as tokens [B, rows columns, C p q], row by row, and back, with
// the cast. An order of the same elements; every device moves the same bits.
#pragma once

#include "arguments.hpp"

namespace pfc {

struct PatchArgs {
  int64_t batch = 0, channels = 0, rows = 0, columns = 0;  // rows and columns of patches
  int64_t high = 0, wide = 0;                              // of a patch
  bool channels_first = true;                              // within a token: (c, u, v), or (u, v, c)
  bool to_tokens = true;
  DType from_dtype = DType::kFloat32, to_dtype = DType::kFloat32;
  const void* from = nullptr;
  void* to = nullptr;
  bool streaming = false;  // the CPU's outputs bypass the cache

  PFC_HD int64_t token() const { return channels * high * wide; }
};

// Where element (c, u, v) of the patch in row i and column j lies in each of the two.
PFC_HD int64_t image_index(const PatchArgs& a, int64_t b, int64_t i, int64_t j, int64_t c, int64_t u, int64_t v) {
  return ((b * a.channels + c) * a.rows * a.high + i * a.high + u) * (a.columns * a.wide) + j * a.wide + v;
}

PFC_HD int64_t token_index(const PatchArgs& a, int64_t b, int64_t i, int64_t j, int64_t c, int64_t u, int64_t v) {
  const int64_t inside = a.channels_first ? (c * a.high + u) * a.wide + v : (u * a.wide + v) * a.channels + c;
  return ((b * a.rows + i) * a.columns + j) * a.token() + inside;
}

}  // namespace pfc
