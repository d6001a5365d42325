// combine on the CPU: how a row walks memory. The arithmetic is core/combine.hpp.
#pragma once

#include "../core/combine.hpp"
#include "normals.hpp"

namespace pfc::cpu {
namespace {

// Noise is made this many elements ahead, in a buffer that stays in the first-level cache.
inline constexpr int64_t kChunk = 512;

template <class S>
struct Streams {
  const CombineArgs* args;
  int64_t numel;
  S in_scale;
  S scale[kMaxBranches + 2];  // guidance scales, or weights, of the segment at hand
  const float* noise;         // [draws][kChunk], of the chunk that begins at chunk_begin
  int64_t chunk_begin;
};

// Memory of core/combine.hpp for one element.
template <class S>
struct OneElement {
  const Streams<S>& m;
  int64_t i;
  PFC_INLINE S branch(int j) const { return load_one<S>(m.args->branch[j], m.args->out_dtype, i); }
  PFC_INLINE S scale(int j) const { return m.scale[j]; }
  PFC_INLINE bool mixed() const { return m.args->mixed; }
  PFC_INLINE bool mixes_point() const { return m.args->mixes_point; }
  PFC_INLINE bool has_momentum() const { return m.args->momentum != nullptr; }
  PFC_INLINE S momentum() const { return static_cast<const S*>(m.args->momentum)[i]; }
  PFC_INLINE S point() const { return static_cast<const S*>(m.args->point)[i]; }
  PFC_INLINE S state() const { return static_cast<const S*>(m.args->x)[i]; }
  PFC_INLINE S slot(int k) const { return static_cast<const S*>(m.args->slot[k])[i]; }
  PFC_INLINE S noise(int n) const { return static_cast<S>(m.noise[n * kChunk + (i - m.chunk_begin)]); }
  PFC_INLINE void keep(S d) const { static_cast<S*>(m.args->keep)[i] = d; }
  PFC_INLINE void set_state(S x) const { static_cast<S*>(m.args->x_out)[i] = x; }
  PFC_INLINE void set_point(S y) const {
    if (m.args->point_out) static_cast<S*>(m.args->point_out)[i] = y;
    if (m.in_scale != S(1)) y = m.in_scale * y;
    for (int64_t c = 0; c < m.args->copies; ++c) store_one<S>(m.args->inp, m.args->inp_dtype, c * m.numel + i, y);
  }
};

// The same for Wide<S>::kSize elements; the field's dtype is known where the code is compiled, or read from the arguments.
template <class S, int kDType>
struct ManyElements {
  using W = Wide<S>;
  const Streams<S>& m;
  int64_t i;
  bool streaming;

  PFC_INLINE W load(const void* base, DType dtype) const {
    W w;
    for (int u = 0; u < W::kUnroll; ++u) w.part[u] = load_native<S>(base, dtype, i + u * W::kLanes);
    return w;
  }
  PFC_INLINE W load(const void* base) const {
    W w;
    for (int u = 0; u < W::kUnroll; ++u)
      w.part[u] = load_bytes<typename W::Native>(static_cast<const S*>(base) + i + u * W::kLanes);
    return w;
  }
  PFC_INLINE void store(void* base, const W& w, bool stream) const {
    for (int u = 0; u < W::kUnroll; ++u) store_bytes(static_cast<S*>(base) + i + u * W::kLanes, w.part[u], stream);
  }
  PFC_INLINE DType dtype(DType given) const { return kDType < 0 ? given : static_cast<DType>(kDType); }
  PFC_INLINE W branch(int j) const { return load(m.args->branch[j], dtype(m.args->out_dtype)); }
  PFC_INLINE S scale(int j) const { return m.scale[j]; }
  PFC_INLINE bool mixed() const { return m.args->mixed; }
  PFC_INLINE bool mixes_point() const { return m.args->mixes_point; }
  PFC_INLINE bool has_momentum() const { return m.args->momentum != nullptr; }
  PFC_INLINE W momentum() const { return load(m.args->momentum); }
  PFC_INLINE W point() const { return load(m.args->point); }
  PFC_INLINE W state() const { return load(m.args->x); }
  PFC_INLINE W slot(int k) const { return load(m.args->slot[k]); }
  PFC_INLINE W noise(int n) const {
    W w;
    for (int u = 0; u < W::kUnroll; ++u)
      w.part[u] = load_native<S>(m.noise + n * kChunk, DType::kFloat32, i - m.chunk_begin + u * W::kLanes);
    return w;
  }
  PFC_INLINE void keep(const W& d) const { store(m.args->keep, d, streaming); }
  PFC_INLINE void set_state(const W& x) const { store(m.args->x_out, x, false); }
  PFC_INLINE void set_point(W y) const {
    if (m.args->point_out) store(m.args->point_out, y, streaming);
    if (m.in_scale != S(1)) y = m.in_scale * y;
    for (int64_t c = 0; c < m.args->copies; c += 2)
      for (int u = 0; u < W::kUnroll; ++u)
        store_pair<S>(m.args->inp, dtype(m.args->inp_dtype), c * m.numel + i + u * W::kLanes, y.part[u], streaming,
                      c + 1 < m.args->copies, m.numel);
  }
};

template <class S, int kBranches, int kDType, bool kMixed = false>
inline void combine_range(const CombineArgs& given, int64_t begin, int64_t end) {
  // A copy whose address stays here: the stores below cannot change it, so its pointers stay in registers.
  const CombineArgs args = given;
  const Row<S> row = decode_row<S>(args.record);
  const Pass pass{args.branches, row.changes_state() || args.x_out != args.x,
                  args.point_out != nullptr || args.copies > 0, args.keep != nullptr, row.point_is_state()};
  alignas(64) float noise[kMaxDraws * kChunk];
  Streams<S> m{&args, args.batch * args.sample, row.in_scale, {}, noise, 0};
  const bool per_sample = args.scale != nullptr && args.scale_sample_stride != 0;
  const S* scale = static_cast<const S*>(args.scale);
  const int scales = args.mixed ? args.branches + 1 + args.mixes_point : args.branches - 1;

  for (int64_t i = begin; i < end;) {
    const int64_t chunk_end = row.draws > 0 && end > i + kChunk ? i + kChunk : end;
    m.chunk_begin = i;
    for (int n = 0; n < row.draws; ++n)
      fill_normals(args.seeds, args.sample, args.stream, row.draw[n].index, i, chunk_end, noise + n * kChunk);
    while (i < chunk_end) {
      // A segment ends where the guidance scale may change.
      const int64_t sample = per_sample ? i / args.sample : 0;
      const int64_t last = (sample + 1) * args.sample;
      const int64_t stop = per_sample && last < chunk_end ? last : chunk_end;
      if (scale)
        for (int j = 0; j < scales; ++j)
          m.scale[j] = scale[j * args.scale_branch_stride + sample * args.scale_sample_stride];

      // Vectors start at multiples of a cache line, which streaming stores need.
      constexpr int64_t kAlign = 64 / sizeof(uint16_t);
      const int64_t head = i + (kAlign - i % kAlign) % kAlign;
      for (; i < stop && i < head; ++i) combine_element<S, kBranches, kMixed>(row, pass, OneElement<S>{m, i});
      for (; i + Wide<S>::kSize <= stop; i += Wide<S>::kSize)
        combine_element<Wide<S>, kBranches, kMixed>(row, pass, ManyElements<S, kDType>{m, i, args.streaming});
      for (; i < stop; ++i) combine_element<S, kBranches, kMixed>(row, pass, OneElement<S>{m, i});
    }
  }
  if (args.streaming) finish_streaming();
}

// The usual shapes of a call get code of their own: a float32 state, one or two branches, and one dtype for all that the
// field takes and gives. What is left to decide within a row is the same for every element and costs little.
template <int kBranches, bool kMixed = false>
inline void combine_float(const CombineArgs& args, int64_t begin, int64_t end) {
  if (args.copies > 0 && args.inp_dtype != args.out_dtype) return combine_range<float, 0, -1>(args, begin, end);
  switch (args.out_dtype) {
    case DType::kFloat32:
      return combine_range<float, kBranches, static_cast<int>(DType::kFloat32), kMixed>(args, begin, end);
    case DType::kBFloat16:
      return combine_range<float, kBranches, static_cast<int>(DType::kBFloat16), kMixed>(args, begin, end);
    case DType::kFloat16:
      return combine_range<float, kBranches, static_cast<int>(DType::kFloat16), kMixed>(args, begin, end);
    default: return combine_range<float, 0, -1>(args, begin, end);
  }
}

inline void combine(const CombineArgs& args, int64_t begin, int64_t end) {
  if (args.state_dtype == DType::kFloat64) return combine_range<double, 0, -1>(args, begin, end);
  if (args.mixed)
    return args.branches == 2 ? combine_float<2, true>(args, begin, end) : combine_float<0>(args, begin, end);
  if (args.branches == 1) return combine_float<1>(args, begin, end);
  if (args.branches == 2) return combine_float<2>(args, begin, end);
  return combine_range<float, 0, -1>(args, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
