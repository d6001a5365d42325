// The engine on CUDA: a block takes a tile of samples through all layers and all rows. What happens between two barriers is
// a member function of Engine for one thread (or, of layers, one lane of a warp), so that the tests run a whole block on the
// CPU, thread by thread. How a layer multiplies is the mode's: engine_exact.cuh, engine_mma.cuh.
//
// Nobody but the block touches its tile, its shared memory and its scratch, and what a thread computed of a sample does not
// depend on which block, tile or lane that was: no result depends on the batch.
#pragma once

#include "../core/combine.hpp"
#include "../core/normal.hpp"
#include "../core/time_feature.hpp"
#include "engine_activation.cuh"
#include "engine_layout.hpp"
#include "pack.hpp"

namespace pfc::cuda {

PFC_HD double load_time(const void* t, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<double>(static_cast<const float*>(t)[at]);
    case DType::kFloat64: return static_cast<const double*>(t)[at];
    case DType::kBFloat16: return decode<double>(static_cast<const BFloat16*>(t)[at]);
    default: return decode<double>(static_cast<const Float16*>(t)[at]);
  }
}

// Four elements of one sample, for core/combine.hpp.
template <class S>
struct EngineMemory {
  using V = Pack<S, kItem>;
  S* plane0;  // the item's place in the first plane
  int64_t plane_stride;
  const EngineParams& p;
  const EngineRow<S>& row;
  int64_t sample, block;

  PFC_HD V load(int plane) const {
    V r;
    const Quad<S> quad = read_quad<S>(plane0 + plane * plane_stride);
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) r.v[e] = quad.v[e];
    return r;
  }
  PFC_HD void store(int plane, const V& value) const {
    Quad<S> quad;
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) quad.v[e] = value.v[e];
    *reinterpret_cast<Quad<S>*>(plane0 + plane * plane_stride) = quad;
  }
  PFC_HD S scale(int j) const {
    return static_cast<const S*>(p.scale)[row.scale + j * p.scale_branch_stride + sample * p.scale_sample_stride];
  }
  PFC_HD V branch(int j) const { return load(p.first_output + j); }
  PFC_HD V point() const { return load(row.point_plane); }
  PFC_HD V state() const { return load(0); }
  PFC_HD V slot(int k) const { return load(2 + k); }
  PFC_HD V noise(int n) const {
    V r;
    const NormalBlock drawn = normal_block(static_cast<uint64_t>(p.seeds[sample]), p.stream, row.row.draw[n].index,
                                           static_cast<uint64_t>(block));
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e) r.v[e] = static_cast<S>(drawn.value[e]);
    return r;
  }
  PFC_HD static constexpr bool mixed() { return false; }
  PFC_HD static constexpr bool mixes_point() { return false; }
  PFC_HD static constexpr bool has_momentum() { return false; }
  PFC_HD V momentum() const { return V{}; }
  PFC_HD void keep(const V& d) const { store(2 + row.row.store, d); }
  PFC_HD void set_state(const V& value) const { store(0, value); }
  PFC_HD void set_point(const V& value) const { store(1, value); }
};

template <class Mode_>
struct Engine {
  using Mode = Mode_;
  using S = typename Mode::S;
  using Record = EngineRecord<S>;
  static constexpr int kTile = Mode::kTile, kThreads = Mode::kThreads;

  const EngineParams& p;
  char* shared;
  int64_t block;
  int thread;
  int slot;  // of the two rows in shared memory the one at hand; the next one comes while this one ends

  PFC_HD Engine(const EngineParams& params, char* memory, int64_t at, int number, int which)
      : p(params), shared(memory), block(at), thread(number), slot(which) {}

  // ------------------------------------------------------------------------------------------------------------ places
  template <class T>
  PFC_HD T* at(const EnginePlace& place) const {
    char* base = place.shared ? shared : p.scratch + block * p.scratch_stride;
    return reinterpret_cast<T*>(base + place.offset);
  }
  PFC_HD char* buffer(int number) const { return shared + 2 * kEngineRowBytes + number * p.buffer_bytes; }
  PFC_HD char* stage() const { return buffer(p.buffers); }  // kStageBytes of the mode's own
  PFC_HD const EngineRow<S>& row() const {
    return *reinterpret_cast<const EngineRow<S>*>(shared + slot * kEngineRowBytes);
  }
  PFC_HD const S* weights() const { return static_cast<const S*>(p.parameters); }
  PFC_HD uint32_t word(int i) const { return p.remote != nullptr ? p.remote[i] : p.words[i]; }
  PFC_HD double real(int i) const {
    const uint64_t low = word(i), high = word(i + 1);
    return exact::bit_cast<double>(low | high << 32);
  }
  PFC_HD double feature(int f, double t) const {
    const int i = p.features_at + 6 * f;
    return time_feature(static_cast<Feature>(static_cast<int>(real(i))), real(i + 2), real(i + 4), t);
  }
  // The time's part of layer 0 at output n: of this row, or of sample m; and the conditions' part of branch j.
  PFC_HD const S* time_part(int m) const {
    return at<S>(p.prefix) + static_cast<int64_t>(p.t_per_sample ? m : row().evaluation) * p.hidden;
  }
  PFC_HD const S* condition_part(int j, int m) const {
    return at<S>(p.sums) + (static_cast<int64_t>(j) * kTile + m) * p.hidden;
  }
  // Sample m of a tile, or the batch's last one where there is none: what is computed of it goes nowhere.
  PFC_HD int64_t sample(int64_t tile, int m) const {
    const int64_t found = tile * kTile + m;
    return found < p.batch ? found : p.batch - 1;
  }
  PFC_HD static int weight(int n, int in, int k) { return ((n / kPanel) * in + k) * kPanel + n % kPanel; }

  // ------------------------------------------------------------------------------------- once, when the block begins
  // Rows' features of time that the buffers hold at once.
  PFC_HD int rows_at_once() const {
    const int held = static_cast<int>(p.buffer_bytes * p.buffers / static_cast<int64_t>(sizeof(S)));
    return held / (p.features > 0 ? p.features : 1);
  }
  PFC_HD int shared_times() const { return p.t_per_sample ? 0 : p.evaluations; }
  PFC_HD double time_of(int evaluation) const {
    if (p.rows > 0) return real(p.times_at + 2 * evaluation);
    return p.t != nullptr ? load_time(p.t, p.t_dtype, 0) : p.time;
  }
  PFC_HD void features(int first, int count) const {
    S* out = reinterpret_cast<S*>(buffer(0));
    PFC_NO_UNROLL
    for (int i = thread; i < count * p.features; i += kThreads)
      out[i] = static_cast<S>(feature(i % p.features, time_of(first + i / p.features)));
  }
  PFC_HD void prefixes(int first, int count) const {
    const S* values = reinterpret_cast<const S*>(buffer(0));
    S* out = at<S>(p.prefix) + static_cast<int64_t>(first) * p.hidden;
    PFC_NO_UNROLL
    for (int i = thread; i < count * p.hidden; i += kThreads) {
      const int n = i % p.hidden;
      out[i] = add_products(weights()[p.layer[0].bias + n], values + i / p.hidden * p.features, 1, p.features,
                            p.time_weights, n, 0, p.features);
    }
  }
  // Adds the products of `count` values from the first on to z, in the chains of core/network.hpp; weights of `in` inputs.
  // `first` begins a chain.
  PFC_HD S add_products(S z, const S* values, int step, int count, int64_t weights_at, int n, int first, int in) const {
    const S* w = weights() + weights_at + weight(n, in, first);
    PFC_NO_UNROLL
    for (int begin = 0; begin < count; begin += kChain) {
      const int end = begin + kChain < count ? begin + kChain : count;
      S s = S(0);
      for (int k = begin; k < end; ++k) s = DeviceMath::mul_add(w[k * kPanel], values[k * step], s);
      z = z + s;
    }
    return z;
  }

  // ------------------------------------------------------------------------------------------------------ for each tile
  PFC_HD void begin(int64_t tile) const {
    S* state = at<S>(p.plane);
    PFC_NO_UNROLL
    for (int i = thread; i < kTile * p.stride; i += kThreads) {
      const int m = i / p.stride, d = i % p.stride;
      state[i] = d < p.dim ? static_cast<const S*>(p.x0)[sample(tile, m) * p.dim + d] : S(0);
    }
  }
  PFC_HD void conditions(int64_t tile) const {
    const int branches = p.planes - p.first_output;
    S* out = at<S>(p.sums);
    PFC_NO_UNROLL
    for (int i = thread; i < branches * kTile * p.hidden; i += kThreads) {
      const int n = i % p.hidden, row = i / p.hidden;
      const S* values = static_cast<const S*>(p.cond) +
                        ((row / kTile) * p.batch + sample(tile, row % kTile)) * static_cast<int64_t>(p.conditions);
      out[i] = add_products(S(0), values, 1, p.conditions, p.condition_weights, n, 0, p.conditions);
    }
  }
  // Times that differ between samples: their features in parts, as many whole chains as the buffers hold for every sample.
  PFC_HD int features_at_once() const {
    return static_cast<int>(p.buffer_bytes * p.buffers / (static_cast<int64_t>(sizeof(S)) * kTile)) / kChain * kChain;
  }
  static_assert(kEngineStageBytes >= static_cast<int64_t>(sizeof(S)) * kTile * kChain);
  PFC_HD void sample_features(int64_t tile, int first, int count) const {
    S* out = reinterpret_cast<S*>(buffer(0));
    PFC_NO_UNROLL
    for (int i = thread; i < kTile * count; i += kThreads)
      out[i] = static_cast<S>(feature(first + i / kTile, load_time(p.t, p.t_dtype, sample(tile, i % kTile))));
  }
  PFC_HD void sample_prefixes(int first, int count) const {
    const S* values = reinterpret_cast<const S*>(buffer(0));
    S* out = at<S>(p.prefix);
    PFC_NO_UNROLL
    for (int i = thread; i < kTile * p.hidden; i += kThreads) {
      const int n = i % p.hidden;
      const S start = first == 0 ? weights()[p.layer[0].bias + n] : out[i];
      out[i] = add_products(start, values + i / p.hidden, kTile, count, p.time_weights, n, first, p.features);
    }
  }

  // ------------------------------------------------------------------------------------------------------- for each row
  PFC_HD void fetch(int r) const {
    if (r >= p.rows) return;
    const int from = static_cast<int>(word(p.records_at + r)), to = static_cast<int>(word(p.records_at + r + 1));
    const int terms = static_cast<int>(word(from + Record::kTerms)) * Record::kTerm;
    uint32_t* words = reinterpret_cast<uint32_t*>(shared + r % 2 * kEngineRowBytes);
    for (int i = thread; i < to - from; i += kThreads) words[Record::place(i, terms)] = word(from + i);
  }
  // Of one evaluation there is no row but this.
  PFC_HD void fetch_single() const {
    if (thread > 0) return;
    EngineRow<S>* only = reinterpret_cast<EngineRow<S>*>(shared);
    only->point_scale = S(1);
    only->branches = 1;
    only->point_plane = only->evaluation = 0;
  }
  // The network's input, from the point.
  PFC_HD void input() const {
    const S* point = at<S>(p.plane) + static_cast<int64_t>(row().point_plane) * kTile * p.stride;
    const S scale = row().point_scale;
    const int padded = Mode::padded_inputs(p.dim);
    PFC_NO_UNROLL
    for (int i = thread; i < kTile * padded; i += kThreads) {
      const int m = i % kTile, k = i / kTile;
      S value = k < p.dim ? point[m * p.stride + k] : S(0);
      if (scale != S(1)) value = scale * value;
      Mode::store(buffer(0), p, m, k, value);
    }
  }
  PFC_HD void combine(int64_t tile) const {
    const EngineRow<S>& now = row();
    const Pass pass{now.branches, now.changes_state != 0, now.writes_point != 0, now.row.store >= 0,
                    now.next_is_state != 0};
    const int items = p.stride / kItem;
    const int64_t plane = static_cast<int64_t>(kTile) * p.stride;
    PFC_NO_UNROLL
    for (int i = thread; i < kTile * items; i += kThreads) {
      const int m = i / items, b = i % items;
      const EngineMemory<S> memory{at<S>(p.plane) + i * kItem, plane, p, now, sample(tile, m), b};
      if (now.point_out >= 0) write(p.points, now.point_out, tile, m, b, memory.point());
      combine_element<Pack<S, kItem>>(now.row, pass, memory);
      if (now.state_out >= 0) write(p.states, now.state_out, tile, m, b, memory.state());
    }
  }
  PFC_HD void write(void* to, int number, int64_t tile, int m, int b, const Pack<S, kItem>& value) const {
    const int64_t at_sample = tile * kTile + m;
    if (at_sample >= p.batch) return;
    S* out = static_cast<S*>(to) + (number * p.batch + at_sample) * p.dim + b * kItem;
    PFC_FULL_UNROLL
    for (int e = 0; e < kItem; ++e)
      if (b * kItem + e < p.dim) out[e] = value.v[e];
  }
  PFC_HD void finish(int64_t tile, int plane) const {
    const S* from = at<S>(p.plane) + static_cast<int64_t>(plane) * kTile * p.stride;
    const int64_t left = p.batch - tile * kTile;
    const int count = left < kTile ? static_cast<int>(left) : kTile;
    S* out = static_cast<S*>(p.x) + tile * kTile * p.dim;
    PFC_NO_UNROLL
    for (int i = thread; i < count * p.dim; i += kThreads) out[i] = from[i / p.dim * p.stride + i % p.dim];
  }

  // ------------------------------------------------------------------------------------------------------------ layers
  // What becomes of a layer's sums for output n of N neighbouring samples from m on. z lies in the thread's own memory.
  template <int N>
  PFC_HD Pack<S, N> activated(const EngineLayer& layer, Pack<S, N> z, int m, int n) const {
    z = activate<typename Mode::Function>(static_cast<Activation>(layer.activation), static_cast<S>(layer.parameter),
                                          z);
    if (layer.residual >= 0) {
      PFC_FULL_UNROLL
      for (int e = 0; e < N; ++e) z.v[e] = z.v[e] + Mode::load(buffer(layer.residual), p, m + e, n);
    }
    if (layer.after == static_cast<int>(Activation::kIdentity)) return z;
    return activate<typename Mode::Function>(static_cast<Activation>(layer.after),
                                             static_cast<S>(layer.after_parameter), z);
  }
  // The start of a layer's sums: the bias, or what the time and the conditions give.
  PFC_HD S start(int l, int j, int m, int n) const {
    if (l > 0) return weights()[p.layer[l].bias + n];
    const S s = time_part(m)[n];
    return p.conditions > 0 ? s + condition_part(j, m)[n] : s;
  }
  PFC_HD S* output(int j) const { return at<S>(p.plane) + static_cast<int64_t>(p.first_output + j) * kTile * p.stride; }
};

// The work of a block. run(phase) has every thread do a phase and waits for all; run.layer(l, j) the same for a layer;
// run.slot is the slot of the row at hand.
template <class Mode, bool kSingle, class Run>
PFC_HD void engine_block(const EngineParams& p, const Run& run) {
  using E = Engine<Mode>;
  const E self = run.engine();
  run([&](const E& e) {
    for (int l = 0; l < p.layers; ++l) Mode::load_weights(e, l);
    if constexpr (kSingle) e.fetch_single();
  });
  const int times = self.shared_times(), step = self.rows_at_once();
  PFC_NO_UNROLL
  for (int first = 0; first < times; first += step) {
    const int count = times - first < step ? times - first : step;
    run([&](const E& e) { e.features(first, count); });
    run([&](const E& e) { e.prefixes(first, count); });
  }
  PFC_NO_UNROLL
  for (int64_t tile = self.block; tile < p.tiles; tile += p.blocks) {
    run([&](const E& e) {
      e.begin(tile);
      if (p.conditions > 0) e.conditions(tile);
      if constexpr (!kSingle) e.fetch(0);
    });
    if constexpr (kSingle) {
      if (p.t_per_sample) {
        const int most = self.features_at_once();
        int first = 0;
        do {  // once even without features: the bias
          const int count = p.features - first < most ? p.features - first : most;
          run([&](const E& e) { e.sample_features(tile, first, count); });
          run([&](const E& e) { e.sample_prefixes(first, count); });
          first += most;
        } while (first < p.features);
      }
      run([&](const E& e) { e.input(); });
      PFC_NO_UNROLL
      for (int l = 0; l < p.layers; ++l) run.layer(l, 0);
    } else {
      PFC_NO_UNROLL
      for (int r = 0; r < p.rows; ++r) {
        run.slot = r % 2;
        const int branches = run.engine().row().branches;
        PFC_NO_UNROLL
        for (int j = 0; j < branches; ++j) {
          run([&](const E& e) { e.input(); });
          PFC_NO_UNROLL
          for (int l = 0; l < p.layers; ++l) run.layer(l, j);
        }
        run([&](const E& e) {
          e.fetch(r + 1);
          e.combine(tile);
        });
      }
    }
    run([&](const E& e) { e.finish(tile, kSingle ? p.first_output : 0); });
  }
}

}  // namespace pfc::cuda
