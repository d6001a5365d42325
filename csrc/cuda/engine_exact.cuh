// Exact layers: chains of fused multiply-adds in the order of core/network.hpp. A warp takes a panel of 16 outputs of a group of
// samples; a lane four of the outputs and kRows neighbouring samples.
#pragma once

#include "engine.cuh"

#if defined(__CUDA_ARCH__)
#define PFC_PRAGMA(text) _Pragma(#text)
#define PFC_UNROLL_BY(count) PFC_PRAGMA(unroll count)
#else
#define PFC_UNROLL_BY(count)
#endif

namespace pfc::cuda {

template <class S_, int kRows_, int kGroups_, int kWarps_, int kBlocks_>
struct Exact {
  using S = S_;
  using Function = ExactActivation;
  static constexpr int kRows = kRows_, kGroups = kGroups_, kWarps = kWarps_, kBlocks = kBlocks_;
  static constexpr int kThreads = 32 * kWarps, kGroup = 8 * kRows, kTile = kGroup * kGroups;
  static constexpr int64_t kStageBytes = 0;
  static constexpr bool kPacks = false;  // the parameters are read as they are

  // Activations [k][sample], weights as they are packed.
  static int buffer_stride(int) { return kTile; }
  static int64_t buffer_bytes(int width) { return static_cast<int64_t>(width) * kTile * sizeof(S); }
  static int64_t weight_bytes(int panels, int in) { return static_cast<int64_t>(panels) * in * kPanel * sizeof(S); }
  PFC_HD static int padded_inputs(int in) { return in; }
  PFC_HD static S load(const char* buffer, const EngineParams&, int m, int k) {
    return reinterpret_cast<const S*>(buffer)[k * kTile + m];
  }
  PFC_HD static void store(char* buffer, const EngineParams&, int m, int k, S value) {
    reinterpret_cast<S*>(buffer)[k * kTile + m] = value;
  }

  template <class E>
  PFC_HD static void load_weights(const E& engine, int l) {
    const EngineLayer& layer = engine.p.layer[l];
    if (!layer.resident.shared) return;
    const S* from = engine.weights() + layer.weights;
    S* to = engine.template at<S>(layer.resident);
    const int quads = layer.panels * layer.in * (kPanel / kItem);
    PFC_NO_UNROLL
    for (int i = engine.thread; i < quads; i += kThreads)
      reinterpret_cast<Quad<S>*>(to)[i] = read_quad<S>(from + i * kItem);
  }

  // kRows neighbouring samples in memory.
  struct alignas(sizeof(S) * kRows < 16 ? sizeof(S) * kRows : 16) Run {
    S v[kRows];
  };

  template <class E>
  PFC_HD static void layer(const E& engine, int l, int j) {
    const EngineLayer& layer = engine.p.layer[l];
    const int warp = engine.thread / 32;
    PFC_NO_UNROLL
    for (int job = warp; job < layer.panels * kGroups; job += kWarps) {
      const int64_t panel = static_cast<int64_t>(job / kGroups) * layer.in * kPanel;
      // Two loops, so that the compiler knows which memory it reads.
      if (layer.resident.shared)
        work(engine, l, j, job, engine.template at<S>(layer.resident) + panel);
      else
        work(engine, l, j, job, engine.weights() + layer.weights + panel);
    }
  }

  template <class E>
  PFC_HD static void work(const E& engine, int l, int j, int job, const S* weights) {
    const EngineLayer& layer = engine.p.layer[l];
    const int lane = engine.thread % 32;
    const int m = job % kGroups * kGroup + lane % 8 * kRows;
    const int n = job / kGroups * kPanel + lane / 8 * kItem;
    const S* h = reinterpret_cast<const S*>(engine.buffer(layer.source)) + m;
    const S* w = weights + lane / 8 * kItem;
    S sum[kItem][kRows];
    PFC_FULL_UNROLL
    for (int i = 0; i < kItem; ++i) PFC_FULL_UNROLL
    for (int e = 0; e < kRows; ++e) sum[i][e] = engine.start(l, j, m + e, n + i);
    PFC_NO_UNROLL
    for (int begin = 0; begin < layer.in; begin += kChain) {
      const int end = begin + kChain < layer.in ? begin + kChain : layer.in;
      S chain[kItem][kRows] = {};
      PFC_UNROLL_BY(4)
      for (int k = begin; k < end; ++k) {
        const Run values = *reinterpret_cast<const Run*>(h + k * kTile);
        const Quad<S> factors = read_quad<S>(w + k * kPanel);
        PFC_FULL_UNROLL
        for (int i = 0; i < kItem; ++i) PFC_FULL_UNROLL
        for (int e = 0; e < kRows; ++e) chain[i][e] = DeviceMath::mul_add(factors.v[i], values.v[e], chain[i][e]);
      }
      PFC_FULL_UNROLL
      for (int i = 0; i < kItem; ++i) PFC_FULL_UNROLL
      for (int e = 0; e < kRows; ++e) sum[i][e] = sum[i][e] + chain[i][e];
    }
    // The sums go through the buffer, so that the code of the activations exists once and not for every output.
    S* out = reinterpret_cast<S*>(engine.buffer(layer.target)) + m;
    PFC_FULL_UNROLL
    for (int i = 0; i < kItem; ++i) {
      Run run;
      PFC_FULL_UNROLL
      for (int e = 0; e < kRows; ++e) run.v[e] = sum[i][e];
      *reinterpret_cast<Run*>(out + (n + i) * kTile) = run;
    }
    const bool last = l + 1 == engine.p.layers;
    S* output = engine.output(j) + static_cast<int64_t>(m) * engine.p.stride;
    PFC_NO_UNROLL
    for (int i = n; i < n + kItem && i < layer.out; ++i) {
      Run run = *reinterpret_cast<const Run*>(out + i * kTile);
      Pack<S, kRows> z;
      PFC_FULL_UNROLL
      for (int e = 0; e < kRows; ++e) z.v[e] = run.v[e];
      z = engine.template activated<kRows>(layer, z, m, i);
      PFC_FULL_UNROLL
      for (int e = 0; e < kRows; ++e) run.v[e] = z.v[e];
      if (!last) {
        *reinterpret_cast<Run*>(out + i * kTile) = run;
        continue;
      }
      PFC_FULL_UNROLL
      for (int e = 0; e < kRows; ++e) output[e * engine.p.stride + i] = run.v[e];
    }
  }
};

}  // namespace pfc::cuda
