// Layers by the tensor cores: operands rounded to bf16 or tf32, sums in float32. mma.sync has 16 outputs by 8 samples by a step
// of k: weights are its first operand, so that a panel is its rows and a tile of samples any number of its columns. A sum's
// order is that of the steps; no column knows of another, so here as well no result depends on the batch.
//
// Where a lane finds what it holds of a fragment: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8".
#pragma once

#include "engine.cuh"

namespace pfc::cuda {

inline constexpr int kColumns = 8;  // samples of a fragment

// Element e of what a lane holds of the sums.
PFC_HD int sum_output(int lane, int e) { return lane / 4 + 8 * (e / 2); }
PFC_HD int sum_sample(int lane, int e) { return lane % 4 * 2 + e % 2; }

struct BFloat16Operand {
  using Stored = uint16_t;
  static constexpr int kStep = 16, kPerWord = 2, kWeightElements = 8;
  PFC_HD static int weight_output(int lane, int e) { return lane / 4 + 8 * (e / 2 % 2); }
  PFC_HD static int weight_input(int lane, int e) { return lane % 4 * 2 + e % 2 + 8 * (e / 4); }
  // The words of a sample's step that a lane holds.
  PFC_HD static int word(int lane, int i) { return lane % 4 + 4 * i; }

  PFC_HD static uint16_t encode(float value) {
#if defined(__CUDA_ARCH__)
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    return static_cast<uint16_t>(float_to_bfloat16<uint32_t, float>(value));
#endif
  }
  PFC_HD static float decode(uint16_t bits) { return bfloat16_to_float<float, uint32_t>(bits); }
  PFC_HD static uint32_t pack(const float* values) {
    return encode(values[0]) | static_cast<uint32_t>(encode(values[1])) << 16;
  }
  PFC_HD static uint32_t operand(uint32_t word) { return word; }
#if defined(__CUDACC__)
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
};

struct TF32Operand {
  using Stored = float;  // rounded when it is read, so that a residual has all of its digits
  static constexpr int kStep = 8, kPerWord = 1, kWeightElements = 4;
  PFC_HD static int weight_output(int lane, int e) { return lane / 4 + 8 * (e % 2); }
  PFC_HD static int weight_input(int lane, int e) { return lane % 4 + 4 * (e / 2); }
  PFC_HD static int word(int lane, int i) { return lane % 4 + 4 * i; }

  PFC_HD static float encode(float value) { return value; }
  PFC_HD static float decode(float value) { return value; }
  // To nearest, ties away from zero.
  PFC_HD static uint32_t round(float value) {
#if defined(__CUDA_ARCH__)
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
#else
    const uint32_t bits = exact::bit_cast<uint32_t>(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
  }
  PFC_HD static uint32_t pack(const float* values) { return round(values[0]); }
  PFC_HD static uint32_t operand(uint32_t word) { return round(exact::bit_cast<float>(word)); }
#if defined(__CUDACC__)
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
};

template <class Operand_, int kColumnTiles_, int kGroups_, int kWarps_, int kBlocks_>
struct TensorCores {
  using S = float;
  using Function = FastActivation;
  using Operand = Operand_;
  static constexpr int kColumnTiles = kColumnTiles_, kGroups = kGroups_, kWarps = kWarps_, kBlocks = kBlocks_;
  static constexpr int kThreads = 32 * kWarps, kGroup = kColumns * kColumnTiles, kTile = kGroup * kGroups;
  static constexpr int kStep = Operand::kStep;
  // What does not fit shared memory is packed before, once for all blocks.
  static constexpr bool kPacks = true;
  // Sums wait for their activations where the results go, if that is as wide; else lane by lane, two neighbouring samples at a
  // time.
  static constexpr bool kStages = sizeof(typename Operand::Stored) < sizeof(S);
  static constexpr int64_t kStageBytes = kStages ? int64_t{kWarps} * kColumnTiles * 2 * 32 * 8 : 0;

  // Activations [sample][k]. An odd number of four words between samples: the eight samples and four words that a warp reads at
  // once lie in different banks.
  static int buffer_stride(int width) { return (width + kPanel - 1) / kPanel * kPanel / Operand::kPerWord + 4; }
  static int64_t buffer_bytes(int width) { return int64_t{4} * buffer_stride(width) * kTile; }
  PFC_HD static int steps(int in) { return (in + kStep - 1) / kStep; }
  // Weights as fragments: [panel][step][lane] of 16 bytes.
  static int64_t weight_bytes(int panels, int in) { return int64_t{512} * panels * steps(in); }
  PFC_HD static int padded_inputs(int in) { return steps(in) * kStep; }

  PFC_HD static typename Operand::Stored* element(char* buffer, const EngineParams& p, int m, int k) {
    return reinterpret_cast<typename Operand::Stored*>(buffer) + (m * p.buffer_stride * Operand::kPerWord + k);
  }
  PFC_HD static S load(char* buffer, const EngineParams& p, int m, int k) {
    return Operand::decode(*element(buffer, p, m, k));
  }
  PFC_HD static void store(char* buffer, const EngineParams& p, int m, int k, S value) {
    *element(buffer, p, m, k) = Operand::encode(value);
  }

  struct alignas(16) Weights {
    uint32_t word[4];
  };
  // What a lane holds of a panel's step, from the packed parameters; zero beyond the inputs.
  PFC_HD static Weights gather(const S* weights, int panel, int in, int step, int lane) {
    float values[Operand::kWeightElements];
    PFC_FULL_UNROLL
    for (int e = 0; e < Operand::kWeightElements; ++e) {
      const int k = step * kStep + Operand::weight_input(lane, e);
      values[e] = k < in ? weights[(panel * in + k) * kPanel + Operand::weight_output(lane, e)] : 0.0f;
    }
    Weights found;
    PFC_FULL_UNROLL
    for (int i = 0; i < 4; ++i) found.word[i] = Operand::pack(values + i * Operand::kPerWord);
    return found;
  }

  template <class E>
  PFC_HD static void load_weights(const E& engine, int l) {
    if (engine.p.layer[l].resident.shared)
      pack_weights(engine.p, l, engine.template at<Weights>(engine.p.layer[l].resident), engine.thread / 32, kWarps,
                   engine.thread % 32);
  }
  // One warp's share of a layer's fragments.
  PFC_HD static void pack_weights(const EngineParams& p, int l, Weights* to, int warp, int warps, int lane) {
    const EngineLayer& layer = p.layer[l];
    const S* weights = static_cast<const S*>(p.parameters) + layer.weights;
    const int count = steps(layer.in);
    PFC_NO_UNROLL
    for (int i = warp; i < layer.panels * count; i += warps)
      to[i * 32 + lane] = gather(weights, i / count, layer.in, i % count, lane);
  }

  // What a lane does for kPanels times 16 outputs of a group of samples: two panels read the samples once.
  template <class E, bool kResident, int kPanels>
  struct Job {
    using Sums = float[kPanels][kColumnTiles][4];
    const E& engine;
    int l, j, lane, first, group, count;
    const Weights* fragments;

    PFC_HD Job(const E& block, int number, int branch, int job)
        : engine(block),
          l(number),
          j(branch),
          lane(block.thread % 32),
          first(job / kGroups * kPanels),
          group(job % kGroups * kGroup),
          count(steps(layer().in)) {
      if constexpr (kResident)
        fragments = engine.template at<Weights>(layer().resident);
      else
        fragments = reinterpret_cast<const Weights*>(engine.p.packed + layer().packed);
    }
    PFC_HD const EngineLayer& layer() const { return engine.p.layer[l]; }
    // Of an odd number of panels the last one is done twice.
    PFC_HD int panel(int q) const { return first + q < layer().panels ? first + q : layer().panels - 1; }

    PFC_HD void begin(Sums& sum) const {
      PFC_FULL_UNROLL
      for (int q = 0; q < kPanels; ++q) PFC_FULL_UNROLL
      for (int c = 0; c < kColumnTiles; ++c) PFC_FULL_UNROLL
      for (int e = 0; e < 4; ++e)
        sum[q][c][e] =
            engine.start(l, j, group + c * kColumns + sum_sample(lane, e), panel(q) * kPanel + sum_output(lane, e));
    }
    PFC_HD Weights weights(int q, int step) const { return fragments[(panel(q) * count + step) * 32 + lane]; }
    PFC_HD void samples(int step, int c, uint32_t (&word)[2]) const {
      const uint32_t* from = reinterpret_cast<const uint32_t*>(engine.buffer(layer().source)) +
                             (group + c * kColumns + lane / 4) * engine.p.buffer_stride +
                             step * (kStep / Operand::kPerWord);
      PFC_FULL_UNROLL
      for (int i = 0; i < 2; ++i) word[i] = Operand::operand(from[Operand::word(lane, i)]);
    }
    // The sums go through memory, so that the code of the activations exists once and not for every element.
    struct alignas(8) Two {
      float v[2];
    };
    PFC_HD Two* staged(int i) const {
      return reinterpret_cast<Two*>(engine.stage()) + (engine.thread / 32 * kColumnTiles * 2 + i) * 32 + lane;
    }
    // Of the pairs of sums that a lane holds of a panel, the first sample and the output of pair i.
    PFC_HD int pair_sample(int i) const { return group + i / 2 * kColumns + sum_sample(lane, 0); }
    PFC_HD int pair_output(int at, int i) const { return at * kPanel + sum_output(lane, i % 2 * 2); }
    PFC_HD char* target() const { return engine.buffer(layer().target); }

    PFC_HD void end(const Sums& sum) const {
      PFC_NO_UNROLL
      for (int q = 0; q < kPanels && first + q < layer().panels; ++q) {
        PFC_FULL_UNROLL
        for (int i = 0; i < 2 * kColumnTiles; ++i) {
          Two two;
          PFC_FULL_UNROLL
          for (int e = 0; e < 2; ++e) {
            // Registers have no index: a choice of two.
            const float one = sum[0][i / 2][i % 2 * 2 + e], other = sum[kPanels - 1][i / 2][i % 2 * 2 + e];
            two.v[e] = q == 0 ? one : other;
          }
          if constexpr (kStages) {
            *staged(i) = two;
          } else {
            PFC_FULL_UNROLL
            for (int e = 0; e < 2; ++e)
              store(target(), engine.p, pair_sample(i) + e, pair_output(first + q, i), two.v[e]);
          }
        }
        finish(first + q);
      }
    }
    PFC_HD void finish(int at) const {
      const bool last = l + 1 == engine.p.layers;
      PFC_NO_UNROLL
      for (int i = 0; i < 2 * kColumnTiles; ++i) {
        const int m = pair_sample(i), n = pair_output(at, i);
        Pack<S, 2> z;
        PFC_FULL_UNROLL
        for (int e = 0; e < 2; ++e) {
          if constexpr (kStages)
            z.v[e] = staged(i)->v[e];
          else
            z.v[e] = load(target(), engine.p, m + e, n);
        }
        const bool real = n < layer().out;
        // The next layer reads whole panels: what is no output is zero there.
        z = real ? engine.template activated<2>(layer(), z, m, n) : Pack<S, 2>{};
        PFC_FULL_UNROLL
        for (int e = 0; e < 2; ++e) {
          if (!last) store(target(), engine.p, m + e, n, z.v[e]);
          if (last && real) engine.output(j)[(m + e) * engine.p.stride + n] = z.v[e];
        }
      }
    }
  };

  // Two panels a job where that leaves no warp without one.
  PFC_HD static bool two_panels(const EngineLayer& layer) { return layer.panels / 2 * kGroups >= kWarps; }
  PFC_HD static int jobs(const EngineLayer& layer) {
    return (two_panels(layer) ? (layer.panels + 1) / 2 : layer.panels) * kGroups;
  }

#if defined(__CUDACC__)
  template <bool kResident, int kPanels, class E>
  __device__ static void work(const E& engine, int l, int j, int number) {
    const Job<E, kResident, kPanels> job(engine, l, j, number);
    float sum[kPanels][kColumnTiles][4];
    job.begin(sum);
    Weights next[kPanels];
    PFC_FULL_UNROLL
    for (int q = 0; q < kPanels; ++q) next[q] = job.weights(q, 0);
    PFC_NO_UNROLL
    for (int step = 0; step < job.count; ++step) {
      Weights now[kPanels];
      PFC_FULL_UNROLL
      for (int q = 0; q < kPanels; ++q) {
        now[q] = next[q];
        next[q] = job.weights(q, step + 1 < job.count ? step + 1 : step);
      }
      PFC_FULL_UNROLL
      for (int c = 0; c < kColumnTiles; ++c) {
        uint32_t samples[2];
        job.samples(step, c, samples);
        PFC_FULL_UNROLL
        for (int q = 0; q < kPanels; ++q) Operand::multiply(sum[q][c], now[q].word, samples);
      }
    }
    job.end(sum);
  }
  template <class E>
  __device__ static void layer(const E& engine, int l, int j) {
    const EngineLayer& at = engine.p.layer[l];
    const int count = jobs(at);
    const bool two = two_panels(at);
    PFC_NO_UNROLL
    for (int job = engine.thread / 32; job < count; job += kWarps) {
      if (at.resident.shared)
        two ? work<true, 2>(engine, l, j, job) : work<true, 1>(engine, l, j, job);
      else
        two ? work<false, 2>(engine, l, j, job) : work<false, 1>(engine, l, j, job);
    }
  }
#endif
};

}  // namespace pfc::cuda
