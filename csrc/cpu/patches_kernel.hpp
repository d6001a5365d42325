// patchify and unpatchify on the CPU. Where a patch's line in a channel is 4 or 8 bytes and channels come first, by shuffles of whole
// vectors; otherwise an image's line at a time, whose tokens stay in the first-level cache until all lines of their patches are
// done.
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

// ----------------------------------------------------------------------------- lines of an image and tokens, by vectors
// A patch's line in one channel is a unit of 4 or 8 bytes. In a row of patches the image has `lines` lines (c, u) of `columns` units,
// and the tokens have them the other way round: a transposition, kLines lines at a time.
template <class U>
using UnitVector = typename NativeOf<U, PFC_NATIVE_BYTES / sizeof(U)>::type;

// Elements 0, n, 1, n + 1, ... of two vectors, from the kHalf-th half of each.
template <class U, int kHalf>
PFC_INLINE UnitVector<U> zipped(const UnitVector<U>& a, const UnitVector<U>& b) {
  constexpr int kUnits = PFC_NATIVE_BYTES / sizeof(U);
  UnitVector<U> order;
  for (int l = 0; l < kUnits; ++l) order[l] = kHalf * (kUnits / 2) + l / 2 + l % 2 * kUnits;
  return __builtin_shuffle(a, b, order);
}

// The even elements of two vectors, or the odd ones.
template <class U, int kOdd>
PFC_INLINE UnitVector<U> unzipped(const UnitVector<U>& a, const UnitVector<U>& b) {
  UnitVector<U> order;
  for (int l = 0; l < static_cast<int>(PFC_NATIVE_BYTES / sizeof(U)); ++l) order[l] = 2 * l + kOdd;
  return __builtin_shuffle(a, b, order);
}

// kLines vectors, one of each line, to the same elements column by column: each step moves the highest bit of the line's
// number below those of the column's.
template <class U, int kLines>
PFC_INLINE void to_columns(UnitVector<U>* line) {
  for (int step = 1; step < kLines; step *= 2) {
    UnitVector<U> next[kLines];
#pragma GCC unroll 4
    for (int k = 0; k < kLines / 2; ++k) {
      next[2 * k] = zipped<U, 0>(line[k], line[k + kLines / 2]);
      next[2 * k + 1] = zipped<U, 1>(line[k], line[k + kLines / 2]);
    }
    for (int k = 0; k < kLines; ++k) line[k] = next[k];
  }
}

template <class U, int kLines>
PFC_INLINE void to_lines(UnitVector<U>* column) {
  for (int step = 1; step < kLines; step *= 2) {
    UnitVector<U> next[kLines];
#pragma GCC unroll 4
    for (int k = 0; k < kLines / 2; ++k) {
      next[k] = unzipped<U, 0>(column[2 * k], column[2 * k + 1]);
      next[k + kLines / 2] = unzipped<U, 1>(column[2 * k], column[2 * k + 1]);
    }
    for (int k = 0; k < kLines; ++k) column[k] = next[k];
  }
}

// Where the lines of a row of patches and its tokens begin, in units.
struct PatchRow {
  int64_t image, token, lines, columns, high, channel_step;

  PFC_INLINE int64_t line(int64_t l) const { return image + l / high * channel_step + l % high * columns; }
};

// Lines first .. first + kLines of a row of patches.
template <class U, bool kToTokens, int kLines>
PFC_INLINE void move_lines(const PatchRow& at, const U* from, U* to, int64_t first, bool streaming) {
  using V = UnitVector<U>;
  constexpr int kUnits = PFC_NATIVE_BYTES / sizeof(U), kPiece = kUnits < kLines ? kUnits : kLines;
  using Piece = typename NativeOf<U, kPiece>::type;
  int64_t line[kLines];
  for (int k = 0; k < kLines; ++k) line[k] = at.line(first + k);
  const int64_t token = at.token + first;
  int64_t j = 0;
  for (; j + kUnits <= at.columns; j += kUnits) {
    // A piece of kPiece units of one token after the other.
    const auto place = [&](int piece) {
      const int unit = piece * kPiece;
      return token + (j + unit / kLines) * at.lines + unit % kLines;
    };
    V vector[kLines];
    if constexpr (kToTokens) {
#pragma GCC unroll 8
      for (int k = 0; k < kLines; ++k) vector[k] = load_bytes<V>(from + line[k] + j);
      to_columns<U, kLines>(vector);
      if (at.lines == kLines) {
#pragma GCC unroll 8
        for (int k = 0; k < kLines; ++k) store_bytes(to + token + j * kLines + k * kUnits, vector[k], streaming);
      } else {
        Piece part[kLines * kUnits / kPiece];
        __builtin_memcpy(part, vector, sizeof(part));
        for (int k = 0; k < kLines * kUnits / kPiece; ++k) store_bytes(to + place(k), part[k], false);
      }
    } else {
      if (at.lines == kLines) {
#pragma GCC unroll 8
        for (int k = 0; k < kLines; ++k) vector[k] = load_bytes<V>(from + token + j * kLines + k * kUnits);
      } else {
        Piece part[kLines * kUnits / kPiece];
        for (int k = 0; k < kLines * kUnits / kPiece; ++k) part[k] = load_bytes<Piece>(from + place(k));
        __builtin_memcpy(vector, part, sizeof(part));
      }
      to_lines<U, kLines>(vector);
#pragma GCC unroll 8
      for (int k = 0; k < kLines; ++k) store_bytes(to + line[k] + j, vector[k], streaming);
    }
  }
  for (; j < at.columns; ++j)
    for (int k = 0; k < kLines; ++k)
      if constexpr (kToTokens)
        store_bytes(to + token + j * at.lines + k, load_bytes<U>(from + line[k] + j), false);
      else
        store_bytes(to + line[k] + j, load_bytes<U>(from + token + j * at.lines + k), false);
}

template <class U, bool kToTokens>
inline void move_units(const PatchArgs& args, int64_t begin, int64_t end) {
  const U* const from = static_cast<const U*>(args.from);
  U* const to = static_cast<U*>(args.to);
  PatchRow at{};
  at.lines = args.channels * args.high;
  at.columns = args.columns;
  at.high = args.high;
  at.channel_step = args.rows * args.high * args.columns;
  for (int64_t row = begin; row < end; ++row) {
    at.image = image_index(args, row / args.rows, row % args.rows, 0, 0, 0, 0) / args.wide;
    at.token = token_index(args, row / args.rows, row % args.rows, 0, 0, 0, 0) / args.wide;
    int64_t l = 0;
    for (; l + 8 <= at.lines; l += 8) move_lines<U, kToTokens, 8>(at, from, to, l, args.streaming);
    for (; l + 4 <= at.lines; l += 4) move_lines<U, kToTokens, 4>(at, from, to, l, false);
    for (; l + 2 <= at.lines; l += 2) move_lines<U, kToTokens, 2>(at, from, to, l, false);
    for (; l < at.lines; ++l) move_lines<U, kToTokens, 1>(at, from, to, l, false);
  }
  if (args.streaming) finish_streaming();
}

template <class T>
inline void move_patches(const PatchArgs& args, int64_t begin, int64_t end) {
  const auto units = [&](auto unit) {
    using U = decltype(unit);
    return args.to_tokens ? move_units<U, true>(args, begin, end) : move_units<U, false>(args, begin, end);
  };
  if (args.channels_first && args.wide * sizeof(T) == 4) return units(uint32_t{});
  if (args.channels_first && args.wide * sizeof(T) == 8) return units(uint64_t{});
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
