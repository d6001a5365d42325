// patchify and unpatchify on CUDA: a thread takes four neighbouring elements of the tokens, one access of 8 or 16 bytes,
// whichever side is written; in the image they are one run of four, two of two, or four single ones. Neighbouring threads have
// neighbouring tokens, whose patches lie beside each other in the image's lines. Compiles for the host as well, for the tests.
#pragma once

#include <type_traits>

#include "../core/patches.hpp"
#include "pack.hpp"

namespace pfc::cuda {

struct PatchParams {
  PatchArgs args;
  Divider token, columns, rows;  // elements of a token; tokens of a row of patches; rows of an image
  Divider inner, middle;         // within a token: sizes of its last coordinate and of the one before
  int64_t numel = 0, items = 0;
  int before = 0;  // elements that the first item lacks, so that the others are aligned
};

// kRun elements at a time in the image. Without a cast T is an integer of the elements' size, and bits are moved; with one T is
// float, through which values go, and the two dtypes are asked for at run time.
template <class T_, int kRun_, bool kCast_>
struct PatchVariant {
  using T = T_;
  static constexpr int kRun = kRun_;
  static constexpr bool kCast = kCast_;
};

// --------------------------------------------------------------------------------------------------------------- accesses
// N elements in one access (two for four of eight bytes).
template <class T, int N>
struct alignas(sizeof(T) * N < kAccess ? sizeof(T) * N : kAccess) Run {
  T v[N];
};

template <class T, int N>
PFC_HD void write_run(T* to, const Run<T, N>& run) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  if constexpr (kBytes > 8) {
    struct Words {
      Quad<uint32_t> quad[kBytes / 16];
    };
    const Words words = exact::bit_cast<Words>(run);
    PFC_FULL_UNROLL
    for (int i = 0; i < kBytes / 16; ++i) write_quad(reinterpret_cast<uint32_t*>(to) + 4 * i, words.quad[i]);
  } else {
    using Word = std::conditional_t<kBytes == 2, uint16_t, std::conditional_t<kBytes == 4, uint32_t, uint64_t>>;
    *reinterpret_cast<Word*>(to) = exact::bit_cast<Word>(run);
  }
}

template <class S, class T, int N>
PFC_HD Pack<S, N> load_as(const void* base, int64_t at) {
  const Run<T, N> run = *reinterpret_cast<const Run<T, N>*>(static_cast<const T*>(base) + at);
  Pack<S, N> r;
  PFC_FULL_UNROLL
  for (int e = 0; e < N; ++e) {
    if constexpr (std::is_same_v<S, T>)
      r.v[e] = run.v[e];
    else
      r.v[e] = decode<S>(run.v[e]);
  }
  return r;
}

template <class T, class S, int N>
PFC_HD void store_as(void* base, int64_t at, const Pack<S, N>& value) {
  Run<T, N> run;
  PFC_FULL_UNROLL
  for (int e = 0; e < N; ++e) {
    if constexpr (std::is_same_v<S, T>)
      run.v[e] = value.v[e];
    else
      run.v[e] = Encode<T>::from(value.v[e]);
  }
  write_run(static_cast<T*>(base) + at, run);
}

template <class C, int N>
PFC_HD Pack<typename C::T, N> load_run(const void* base, DType dtype, int64_t at) {
  if constexpr (!C::kCast) {
    return load_as<typename C::T, typename C::T, N>(base, at);
  } else {
    switch (dtype) {
      case DType::kFloat32: return load_as<float, float, N>(base, at);
      case DType::kFloat64: return load_as<float, double, N>(base, at);
      case DType::kBFloat16: return load_as<float, BFloat16, N>(base, at);
      default: return load_as<float, Float16, N>(base, at);
    }
  }
}

template <class C, int N>
PFC_HD void store_run(void* base, DType dtype, int64_t at, const Pack<typename C::T, N>& value) {
  if constexpr (!C::kCast) {
    store_as<typename C::T>(base, at, value);
  } else {
    switch (dtype) {
      case DType::kFloat32: return store_as<float>(base, at, value);
      case DType::kFloat64: return store_as<double>(base, at, value);
      case DType::kBFloat16: return store_as<BFloat16>(base, at, value);
      default: return store_as<Float16>(base, at, value);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------ places
// An element of the batch by its coordinates, found by divisions once and then counted on.
struct PatchPlace {
  int64_t b, i, j, c, u, v;

  PFC_HD PatchPlace(const PatchParams& p, int64_t at) {
    const int64_t token = p.token.quotient(at), row = p.columns.quotient(token);
    const int64_t inside = at - token * p.token.divisor, rest = p.inner.quotient(inside);
    const int64_t first = p.middle.quotient(rest), second = rest - first * p.middle.divisor;
    const int64_t last = inside - rest * p.inner.divisor;
    b = p.rows.quotient(row);
    i = row - b * p.rows.divisor;
    j = token - row * p.columns.divisor;
    c = p.args.channels_first ? first : last;
    u = p.args.channels_first ? second : first;
    v = p.args.channels_first ? last : second;
  }

  // So many elements on in the order of tokens: one, or a run, which divides a patch's line.
  PFC_HD void advance(const PatchArgs& a, int count) {
    if (a.channels_first) {
      v += count;
      if (v < a.wide) return;
      v = 0;
      if (++u < a.high) return;
      u = 0;
      if (++c < a.channels) return;
      c = 0;
    } else {
      c += count;
      if (c < a.channels) return;
      c = 0;
      if (++v < a.wide) return;
      v = 0;
      if (++u < a.high) return;
      u = 0;
    }
    if (++j < a.columns) return;
    j = 0;
    if (++i < a.rows) return;
    i = 0;
    ++b;
  }

  PFC_HD int64_t in_image(const PatchArgs& a) const { return image_index(a, b, i, j, c, u, v); }
};

// ---------------------------------------------------------------------------------------------------------------- a thread
template <class C>
PFC_HD void move_patches(const PatchParams& p, int64_t tile, int thread) {
  constexpr int kRun = C::kRun;
  const PatchArgs& a = p.args;
  const int64_t item = tile * kThreads + thread;
  if (item >= p.items) return;
  const int64_t first = item * kItem - p.before, left = p.numel - first;
  PatchPlace place(p, first > 0 ? first : 0);
  if (first >= 0 && left >= kItem) {
    if (a.to_tokens) {
      Pack<typename C::T, kItem> all;
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; e += kRun) {
        const auto part = load_run<C, kRun>(a.from, a.from_dtype, place.in_image(a));
        PFC_FULL_UNROLL
        for (int k = 0; k < kRun; ++k) all.v[e + k] = part.v[k];
        if (e + kRun < kItem) place.advance(a, kRun);
      }
      store_run<C, kItem>(a.to, a.to_dtype, first, all);
    } else {
      const auto all = load_run<C, kItem>(a.from, a.from_dtype, first);
      PFC_FULL_UNROLL
      for (int e = 0; e < kItem; e += kRun) {
        Pack<typename C::T, kRun> part;
        PFC_FULL_UNROLL
        for (int k = 0; k < kRun; ++k) part.v[k] = all.v[e + k];
        store_run<C, kRun>(a.to, a.to_dtype, place.in_image(a), part);
        if (e + kRun < kItem) place.advance(a, kRun);
      }
    }
    return;
  }
  // The two ends of memory that begins or ends within an item.
  const int64_t end = left < kItem ? p.numel : first + kItem;
  PFC_NO_UNROLL
  for (int64_t at = first > 0 ? first : 0; at < end; ++at) {
    const int64_t image = place.in_image(a);
    store_run<C, 1>(a.to, a.to_dtype, a.to_tokens ? at : image,
                    load_run<C, 1>(a.from, a.from_dtype, a.to_tokens ? image : at));
    place.advance(a, 1);
  }
}

// -------------------------------------------------------------------------------------------------------------------- host
template <class T, bool kCast, class Launch>
auto dispatch_patch_runs(const PatchParams& params, int run, const Launch& launch) {
  const int64_t tiles = (params.items + kThreads - 1) / kThreads;
  switch (run) {
    case 4: return launch(PatchVariant<T, 4, kCast>{}, params, tiles);
    case 2: return launch(PatchVariant<T, 2, kCast>{}, params, tiles);
    default: return launch(PatchVariant<T, 1, kCast>{}, params, tiles);
  }
}

// The longest run in which an image can be accessed, where items begin `before` elements before a token does.
inline int longest_run(const PatchArgs& args, int before) {
  const DType dtype = args.to_tokens ? args.from_dtype : args.to_dtype;
  const auto image = reinterpret_cast<uintptr_t>(args.to_tokens ? args.from : args.to);
  for (int run = kItem; run > 1; run /= 2) {
    const int64_t bytes = run * bytes_of(dtype), access = bytes < kAccess ? bytes : kAccess;
    if (args.channels_first && args.wide % run == 0 && before % run == 0 && image % static_cast<uintptr_t>(access) == 0)
      return run;
  }
  return 1;
}

// launch(PatchVariant, params, tiles).
template <class Launch>
auto dispatch_patches(const PatchArgs& args, const Launch& launch) {
  PatchParams params{args, make_divider(args.token()), make_divider(args.columns), make_divider(args.rows), {}, {}};
  params.inner = make_divider(args.channels_first ? args.wide : args.channels);
  params.middle = make_divider(args.channels_first ? args.high : args.wide);
  params.numel = args.batch * args.rows * args.columns * args.token();
  Alignment alignment;
  alignment.add(args.to_tokens ? args.to : args.from, args.to_tokens ? args.to_dtype : args.from_dtype);
  // Memory of whole elements has a head: a quad begins at one of any four.
  params.before = (kItem - alignment.head(false)) % kItem;
  params.items = (params.numel + params.before + kItem - 1) / kItem;
  const int run = longest_run(args, params.before);
  if (args.from_dtype != args.to_dtype) return dispatch_patch_runs<float, true>(params, run, launch);
  switch (bytes_of(args.from_dtype)) {
    case 2: return dispatch_patch_runs<uint16_t, false>(params, run, launch);
    case 4: return dispatch_patch_runs<uint32_t, false>(params, run, launch);
    default: return dispatch_patch_runs<uint64_t, false>(params, run, launch);
  }
}

}  // namespace pfc::cuda
