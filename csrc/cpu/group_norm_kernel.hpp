// group_norm_silu on the CPU. A group that fits the cache is summed and written by one thread; larger ones are shared out in
// chunks, in three rounds. Both give the same bits.
#pragma once

#include "../core/gelu.hpp"
#include "../core/group_norm.hpp"
#include "activation.hpp"
#include "two.hpp"

namespace pfc::cpu {
namespace {

struct NormSums {
  double sum = 0.0, squares = 0.0;
};

// Elements begin .. end of x, at most a chunk, minus the pivot.
template <DType kType>
inline NormSums norm_chunk(const void* x, int64_t begin, int64_t end, double pivot) {
  using V = Wide<double>::Native;
  constexpr int kLanes = Wide<double>::kLanes, kParts = kGroupLanes / kLanes;
  V sum[kParts] = {}, squares[kParts] = {};
  const auto add = [&](int p, const V& value) __attribute__((always_inline)) {
    const V d = value - pivot;
    sum[p] = sum[p] + d;
    squares[p] = squares[p] + d * d;
  };
  int64_t i = begin;
  for (; i + kGroupLanes <= end; i += kGroupLanes)
    if constexpr (kType == DType::kFloat32 || kType == DType::kFloat64) {
      for (int p = 0; p < kParts; ++p) add(p, load_native<double>(x, kType, i + p * kLanes));
    } else {
      // Half types are widened a whole vector of float32 at a time.
      typename NativeOf<float, kLanes>::type part[kParts];
      for (int p = 0; p < kParts; p += 2) {
        const auto wide = load_native<float>(x, kType, i + p * kLanes);
        __builtin_memcpy(&part[p], &wide, sizeof(wide));
      }
      for (int p = 0; p < kParts; ++p) add(p, __builtin_convertvector(part[p], V));
    }
  if (i < end) {
    alignas(64) double rest[kGroupLanes];
    for (int l = 0; l < kGroupLanes; ++l) rest[l] = i + l < end ? load_one<double>(x, kType, i + l) : pivot;
    for (int p = 0; p < kParts; ++p) add(p, load_bytes<V>(rest + p * kLanes));
  }
  alignas(64) double lane[2][kGroupLanes];
  __builtin_memcpy(lane[0], sum, sizeof(sum));
  __builtin_memcpy(lane[1], squares, sizeof(squares));
  for (int half = kGroupLanes / 2; half > 0; half /= 2)
    for (auto& row : lane)
      for (int l = 0; l < half; ++l) row[l] = row[l] + row[l + half];
  return {lane[0][0], lane[1][0]};
}

template <class S, DType kType>
PFC_INLINE Native<S> silu_of(const Native<S>& z) {
  if constexpr (sizeof(S) == 8) {
    Native<S> value{};
    for (int i = 0; i < Wide<S>::kLanes; ++i) value[i] = exact_answer(Activation::kSiLU, 0.0, z[i]).value;
    return value;
  } else if constexpr (kType != DType::kFloat32) {
    return activation::silu_half<Math, kType == DType::kBFloat16 ? 8 : 11>(z);
  } else if constexpr (kFused) {
    return activation::silu32<Math>(z);
  } else {
    return by_halves([](auto w) { return activation::Wide<Math, false>::silu(w); }, z).value;
  }
}

// `ahead`: how many elements further on the elements lie that will be read next; they are fetched meanwhile.
template <class S, DType kType, bool kSiLU>
PFC_INLINE void norm_write(const GroupNormArgs& args, const ChannelAffine<S>& c, int64_t begin, int64_t end,
                           int64_t ahead) {
  const auto value = [&](const Two<S>& x) __attribute__((always_inline)) {
    return both<S>([&](int u) __attribute__((always_inline)) {
      const Native<S> z = (x.part[u] - c.centre) * c.factor + c.offset;
      return kSiLU ? silu_of<S, kType>(z) : z;
    });
  };
  int64_t i = begin;
  for (; i + kTwo<S> <= end; i += kTwo<S>) {
    fetch_ahead<kTwo<S> * kBytes<kType>>(args.x, (i + ahead) * kBytes<kType>);
    store_two<S, kType>(args.out, i, value(load_two<S, kType>(args.x, i)), args.streaming);
  }
  if (i < end) store_some<S, kType>(args.out, i, value(load_some<S, kType>(args.x, i, end - i)), end - i);
}

// Elements begin .. end of a group.
template <class S, DType kType>
inline void norm_part(const GroupNormArgs& args, int64_t group, const Moments& moments, int64_t begin, int64_t end,
                      int64_t ahead) {
  const int64_t first_channel = group * (args.channels / args.groups);  // of the batch's channels, all in a row
  const auto number = [](const void* base, DType dtype, int64_t at, double otherwise) {
    return base ? load_one<double>(base, dtype, at) : otherwise;
  };
  for (int64_t i = begin; i < end;) {
    const int64_t channel = i / args.spatial, stop = (channel + 1) * args.spatial;
    const int64_t row = first_channel + channel, c = row % args.channels;
    const auto affine = channel_affine<S>(
        moments, number(args.weight, args.weight_dtype, c, 1.0), number(args.bias, args.weight_dtype, c, 0.0),
        number(args.scale, args.scale_dtype, row, 0.0), number(args.shift, args.scale_dtype, row, 0.0));
    const int64_t until = stop < end ? stop : end, base = first_channel * args.spatial;
    if (args.silu)
      norm_write<S, kType, true>(args, affine, base + i, base + until, ahead);
    else
      norm_write<S, kType, false>(args, affine, base + i, base + until, ahead);
    i = until;
  }
}

template <DType kType>
PFC_INLINE double pivot_of(const GroupNormArgs& args, int64_t group) {
  const int64_t size = args.group_size();
  return norm_pivot(size, [&](int i) { return load_one<double>(args.x, kType, group * size + i); });
}

template <DType kType>
PFC_INLINE NormSums norm_sums(const GroupNormArgs& args, int64_t group, int64_t chunk, double pivot) {
  const int64_t size = args.group_size(), first = group * size, begin = chunk * kNormChunk;
  const int64_t end = begin + kNormChunk < size ? begin + kNormChunk : size;
  return norm_chunk<kType>(args.x, first + begin, first + end, pivot);
}

// Calls use(S{}, dtype as a constant).
template <class Use>
PFC_INLINE void with_storage(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat32: return use(0.0f, std::integral_constant<DType, DType::kFloat32>{});
    case DType::kFloat64: return use(0.0, std::integral_constant<DType, DType::kFloat64>{});
    case DType::kBFloat16: return use(0.0f, std::integral_constant<DType, DType::kBFloat16>{});
    default: return use(0.0f, std::integral_constant<DType, DType::kFloat16>{});
  }
}

// Groups begin .. end of the batch, whole.
inline void group_norm(const GroupNormArgs& given, int64_t begin, int64_t end) {
  const GroupNormArgs args = given;
  with_storage(args.dtype, [&](auto s, auto type) {
    constexpr DType kType = decltype(type)::value;
    for (int64_t group = begin; group < end; ++group) {
      const int64_t size = args.group_size();
      const double pivot = pivot_of<kType>(args, group);
      NormSums total;
      for (int64_t chunk = 0; chunk < args.chunks(); ++chunk) {
        const NormSums sums = norm_sums<kType>(args, group, chunk, pivot);
        total = {total.sum + sums.sum, total.squares + sums.squares};
      }
      const Moments moments = moments_of(pivot, total.sum, total.squares, size, args.eps);
      norm_part<decltype(s), kType>(args, group, moments, 0, size, size);
    }
  });
  if (args.streaming) finish_streaming();
}

// Or in three rounds: the sums of chunks begin .. end of the batch,
inline void group_norm_partial(const GroupNormArgs& given, int64_t begin, int64_t end) {
  const GroupNormArgs args = given;
  with_storage(args.dtype, [&](auto, auto type) {
    for (int64_t at = begin; at < end; ++at) {
      constexpr DType kType = decltype(type)::value;
      const int64_t group = at / args.chunks();
      const NormSums sums = norm_sums<kType>(args, group, at % args.chunks(), pivot_of<kType>(args, group));
      args.partial[2 * at] = sums.sum;
      args.partial[2 * at + 1] = sums.squares;
    }
  });
}

// the moments of groups begin .. end,
inline void group_norm_finish(const GroupNormArgs& given, int64_t begin, int64_t end) {
  const GroupNormArgs args = given;
  with_storage(args.dtype, [&](auto, auto type) {
    for (int64_t group = begin; group < end; ++group) {
      NormSums total;
      for (int64_t at = group * args.chunks(); at < (group + 1) * args.chunks(); ++at)
        total = {total.sum + args.partial[2 * at], total.squares + args.partial[2 * at + 1]};
      const double pivot = pivot_of<decltype(type)::value>(args, group);
      const Moments moments = moments_of(pivot, total.sum, total.squares, args.group_size(), args.eps);
      args.moments[2 * group] = moments.mean;
      args.moments[2 * group + 1] = moments.inverse;
    }
  });
}

// and the elements of chunks begin .. end.
inline void group_norm_apply(const GroupNormArgs& given, int64_t begin, int64_t end) {
  const GroupNormArgs args = given;
  with_storage(args.dtype, [&](auto s, auto type) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t group = at / args.chunks(), first = at % args.chunks() * kNormChunk;
      const int64_t last = first + kNormChunk < args.group_size() ? first + kNormChunk : args.group_size();
      const Moments moments{args.moments[2 * group], args.moments[2 * group + 1]};
      norm_part<decltype(s), decltype(type)::value>(args, group, moments, first, last, 0);
    }
  });
  if (args.streaming) finish_streaming();
}

}  // namespace
}  // namespace pfc::cpu
