// patchify and unpatchify on the CPU: an image's line at a time, whose tokens stay in the first-level cache until all lines of
// their patches are done.
#pragma once

#include <type_traits>

#include "../core/patches.hpp"
#include "vec.hpp"

namespace pfc::cpu {
namespace {

template <DType kType>
using StorageOf =
    std::conditional_t<kType == DType::kFloat64, double, std::conditional_t<kType == DType::kFloat32, float, uint16_t>>;

// Calls move(image index, token index) for a line of one channel, in runs of kRun neighbours (1: element by element).
template <int kRun, class Move>
PFC_INLINE void patch_line(const PatchArgs& args, int64_t b, int64_t i, int64_t c, int64_t u, const Move& move) {
  const int64_t between = args.channels_first ? 1 : args.channels, token = args.token();
  int64_t image = image_index(args, b, i, 0, c, u, 0), first = token_index(args, b, i, 0, c, u, 0);
  for (int64_t j = 0; j < args.columns; ++j, first += token)
    if constexpr (kRun > 1) {
      move(image, first);
      image += kRun;
    } else {
      for (int64_t v = 0; v < args.wide; ++v) move(image++, first + v * between);
    }
}

template <int kRun, class Move>
PFC_INLINE void patch_rows(const PatchArgs& args, int64_t begin, int64_t end, const Move& move) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t c = 0; c < args.channels; ++c)
      for (int64_t u = 0; u < args.high; ++u) patch_line<kRun>(args, row / args.rows, row % args.rows, c, u, move);
}

// Same dtype: bits, kRun at once where a patch's line is a run in both.
template <class T, int kRun>
inline void move_patches(const PatchArgs& args, int64_t begin, int64_t end) {
  const T* const from = static_cast<const T*>(args.from);
  T* const to = static_cast<T*>(args.to);
  if (args.to_tokens)
    patch_rows<kRun>(args, begin, end, [=](int64_t image, int64_t token) __attribute__((always_inline)) {
      __builtin_memcpy(to + token, from + image, kRun * sizeof(T));
    });
  else
    patch_rows<kRun>(args, begin, end, [=](int64_t image, int64_t token) __attribute__((always_inline)) {
      __builtin_memcpy(to + image, from + token, kRun * sizeof(T));
    });
}

template <class T>
inline void move_patches(const PatchArgs& args, int64_t begin, int64_t end) {
  if (args.channels_first && args.wide == 2) return move_patches<T, 2>(args, begin, end);
  if (args.channels_first && args.wide == 4) return move_patches<T, 4>(args, begin, end);
  move_patches<T, 1>(args, begin, end);
}

// Through float32, unless both are float64.
template <DType kFrom, DType kTo>
inline void cast_patches(const PatchArgs& args, int64_t begin, int64_t end) {
  const auto cast = [&](int64_t from, int64_t to) __attribute__((always_inline)) {
    store_one<float>(args.to, kTo, to, load_one<float>(args.from, kFrom, from));
  };
  if (args.to_tokens)
    patch_rows<1>(args, begin, end, [&](int64_t image, int64_t token) { cast(image, token); });
  else
    patch_rows<1>(args, begin, end, [&](int64_t image, int64_t token) { cast(token, image); });
}

template <DType kFrom>
inline void patches_from(const PatchArgs& args, int64_t begin, int64_t end) {
  if (args.to_dtype == kFrom) return move_patches<StorageOf<kFrom>>(args, begin, end);
  switch (args.to_dtype) {
    case DType::kFloat32: return cast_patches<kFrom, DType::kFloat32>(args, begin, end);
    case DType::kFloat64: return cast_patches<kFrom, DType::kFloat64>(args, begin, end);
    case DType::kBFloat16: return cast_patches<kFrom, DType::kBFloat16>(args, begin, end);
    default: return cast_patches<kFrom, DType::kFloat16>(args, begin, end);
  }
}

// Rows of patches begin .. end of the batch.
inline void patches(const PatchArgs& given, int64_t begin, int64_t end) {
  const PatchArgs args = given;
  switch (args.from_dtype) {
    case DType::kFloat32: return patches_from<DType::kFloat32>(args, begin, end);
    case DType::kFloat64: return patches_from<DType::kFloat64>(args, begin, end);
    case DType::kBFloat16: return patches_from<DType::kBFloat16>(args, begin, end);
    default: return patches_from<DType::kFloat16>(args, begin, end);
  }
}

}  // namespace
}  // namespace pfc::cpu
