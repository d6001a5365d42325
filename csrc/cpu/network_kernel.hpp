// The network on a tile of samples. NetworkTile is what every engine builds on: fixed steps, adaptive steps and divergences
// call evaluate() on a tile of their own choosing, with layer 0's share of the times and of the conditions made before.
//
//   NetworkTile<S> tile(network, most samples, memory);   // bytes(network, most samples) of memory, 64-byte aligned
//   tile.time_prefix(t, count, prefix);                   // b + W_t f(t), a row of tile.width0() each; to be shared
//   tile.condition_prefix(c, n, prefix);                  // 0 + W_c c, once for each sample and trajectory
//   tile.evaluate(x, n, {prefix, stride 0 or width0()}, {prefix, width0()} or {}, out);
//
// A sample's result has one chain of sums for each output and depends on nothing but its own x, t and c.
#pragma once

#include "dense_kernel.hpp"
#include "time_features.hpp"

namespace pfc::cpu {
namespace {

PFC_INLINE int64_t padded_to_panel(int64_t count) { return (count + kPanel - 1) / kPanel * kPanel; }

// Rows of a prefix: `stride` elements apart, 0 if all samples share one; null for none.
template <class S>
struct Prefix {
  const S* rows = nullptr;
  int64_t stride = 0;
};

// A layer's input, its output, and the one input that may be waiting to be added.
inline constexpr int kBuffers = 3;

// Which of the buffers each layer writes: neither its input's nor one that is still to be added.
PFC_INLINE void place_buffers(const Network& net, int* to) {
  for (int l = 0; l < net.layers; ++l) {
    bool taken[kBuffers] = {};
    if (l > 0) taken[to[l - 1]] = true;
    for (int m = l; m < net.layers; ++m)
      if (net.layer[m].residual > 0 && net.layer[m].residual <= l) taken[to[net.layer[m].residual - 1]] = true;
    to[l] = !taken[0] ? 0 : !taken[1] ? 1 : 2;
  }
}

// Adds `count` rows of whole vectors, all `stride` elements apart.
template <class S>
PFC_INLINE void add_rows(const S* from, S* to, int64_t count, int64_t elements, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < elements; j += Wide<S>::kLanes) {
      S* z = to + i * stride + j;
      store_bytes(z, load_bytes<Native<S>>(z) + load_bytes<Native<S>>(from + i * stride + j), false);
    }
}

// The states x [n][dim] through every layer: the output of layer l is in buffer[to[l]], rows `stride` elements apart.
// activate(l, after, at, rows, elements, z) applies the layer's activation, or the one after its residual, to a block that
// begins at z, `at` elements into the buffer.
template <class S, class Activate>
inline void run_layers(const Network& net, const S* x, int64_t n, Prefix<S> time, Prefix<S> condition, S* const* buffer,
                       const int* to, int64_t stride, const Activate& activate) {
  const S* params = static_cast<const S*>(net.params);
  for (int l = 0; l < net.layers; ++l) {
    const Layer& layer = net.layer[l];
    S* out = buffer[to[l]];
    Dense<S> d{l ? buffer[to[l - 1]] : x,
               l ? stride : net.dim,
               l ? layer.in : net.dim,
               layer.out,
               params + (l ? layer.weights : net.x_weights()),
               l ? params + layer.bias : time.rows,
               l ? 0 : time.stride};
    if (l == 0) {
      d.add = condition.rows;
      d.add_stride = condition.stride;
    }
    d.to = out;
    d.to_stride = stride;
    const S* residual = layer.residual > 0 ? buffer[to[layer.residual - 1]] : nullptr;
    multiply(d, n, [&](int64_t sample, int64_t samples, int64_t element, int64_t elements) {
      const int64_t at = sample * stride + element;
      if (layer.activation != Activation::kIdentity) activate(l, false, at, samples, elements, out + at);
      if (residual) add_rows(residual + at, out + at, samples, elements, stride);
      if (layer.after != Activation::kIdentity) activate(l, true, at, samples, elements, out + at);
    });
  }
}

template <class S>
class NetworkTile {
 public:
  // What a tile of that many samples needs.
  static PFC_INLINE int64_t bytes(const Network& net, int64_t samples) {
    return sizeof(S) * (kPanel * 32 + kBuffers * samples * buffer_stride(net) +
                        feature_rows(samples) * padded_to_panel(net.feature_count)) +
           sizeof(double) * padded_to_panel(FeatureColumns::doubles(net.feature_count));
  }

  PFC_INLINE NetworkTile(const Network& net, int64_t samples, void* memory) : net_(net), samples_(samples) {
    char* at = static_cast<char*>(memory);
    zeros_ = take<S>(at, kPanel * 32);
    for (int i = 0; i < kPanel * 32; ++i) zeros_[i] = S(0);
    stride_ = buffer_stride(net);
    for (S*& buffer : buffer_) buffer = take<S>(at, samples * stride_);
    feature_stride_ = padded_to_panel(net.feature_count);
    features_ = take<S>(at, feature_rows(samples) * feature_stride_);
    columns_ = feature_columns(net, take<double>(at, padded_to_panel(FeatureColumns::doubles(net.feature_count))));
    place_buffers(net, to_);
  }

  PFC_INLINE int64_t width0() const { return padded_to_panel(net_.layer[0].out); }

  // t(i) gives the i-th of `count` times, float64.
  template <class Times>
  inline void time_prefix(const Times& t, int64_t count, S* prefix) const {
    const Layer& layer = net_.layer[0];
    for (int64_t i = 0; i < count; i += feature_rows(samples_)) {
      const int64_t rows = count - i < feature_rows(samples_) ? count - i : feature_rows(samples_);
      for (int64_t r = 0; r < rows; ++r) time_features(columns_, t(i + r), features_ + r * feature_stride_);
      Dense<S> d{features_,
                 feature_stride_,
                 net_.feature_count,
                 layer.out,
                 params() + net_.time_weights(),
                 params() + layer.bias,
                 0};
      d.to = prefix + i * width0();
      d.to_stride = width0();
      multiply(d, rows, [](int64_t, int64_t, int64_t, int64_t) {});
    }
  }

  inline void condition_prefix(const S* c, int64_t n, S* prefix) const {
    Dense<S> d{
        c, net_.condition_count, net_.condition_count, net_.layer[0].out, params() + net_.condition_weights(), zeros_,
        0};
    d.to = prefix;
    d.to_stride = width0();
    multiply(d, n, [](int64_t, int64_t, int64_t, int64_t) {});
  }

  // x [n][dim], out [n][dim]; out may be x.
  inline void evaluate(const S* x, int64_t n, Prefix<S> time, Prefix<S> condition, S* out) const {
    run_layers(net_, x, n, time, condition, buffer_, to_, stride_,
               [&](int l, bool after, int64_t, int64_t rows, int64_t elements, S* z) {
                 const Layer& layer = net_.layer[l];
                 activate_rows(after ? layer.after : layer.activation, after ? layer.after_parameter : layer.parameter,
                               z, rows, elements, stride_);
               });
    const S* last = buffer_[to_[net_.layers - 1]];
    for (int64_t i = 0; i < n; ++i)
      __builtin_memcpy(out + i * net_.dim, last + i * stride_, sizeof(S) * static_cast<std::size_t>(net_.dim));
  }

 private:
  // Rows are a cache line longer than their contents: rows of a power of two would share few sets of the cache.
  static PFC_INLINE int64_t buffer_stride(const Network& net) {
    int64_t widest = 0;
    for (int l = 0; l < net.layers; ++l) widest = net.layer[l].out > widest ? net.layer[l].out : widest;
    return padded_to_panel(widest) + kPanel;
  }
  static PFC_INLINE int64_t feature_rows(int64_t samples) { return samples < 48 ? 48 : samples; }

  template <class T>
  static PFC_INLINE T* take(char*& at, int64_t count) {
    T* here = reinterpret_cast<T*>(at);
    at += sizeof(T) * count;
    return here;
  }

  PFC_INLINE const S* params() const { return static_cast<const S*>(net_.params); }

  const Network& net_;
  int64_t samples_, stride_, feature_stride_;
  S* zeros_;
  S* buffer_[kBuffers];
  S* features_;
  FeatureColumns columns_;
  int to_[kMaxLayers];
};

// Samples of a tile: enough that the weights, read once for each tile and layer, cost little beside the arithmetic, and few
// enough that the activations stay in the second-level cache.
template <class S>
PFC_INLINE int64_t tile_samples(const Network& net, int64_t n) {
  int64_t widest = net.dim;
  for (int l = 0; l < net.layers; ++l) widest = net.layer[l].out > widest ? net.layer[l].out : widest;
  constexpr int64_t kBytes = int64_t{160} << 10;
  int64_t samples = kBytes / (3 * static_cast<int64_t>(sizeof(S)) * (padded_to_panel(widest) + kPanel));
  samples = samples < 4 * kBlockSamples ? 4 * kBlockSamples : samples - samples % kBlockSamples;
  samples = samples > 96 ? 96 : samples;
  const int64_t tiles = (n + samples - 1) / samples;
  return tiles > 1 ? samples : n;
}

template <class S>
inline void network_range(const NetworkArgs& args, int64_t begin, int64_t end) {
  const Network& net = args.network;
  const int64_t most = tile_samples<S>(net, end - begin);
  const int64_t width = padded_to_panel(net.layer[0].out);
  const int64_t tile_bytes = NetworkTile<S>::bytes(net, most);
  char* memory = static_cast<char*>(thread_scratch(tile_bytes + 2 * sizeof(S) * most * width));
  const NetworkTile<S> tile(net, most, memory);
  S* time = reinterpret_cast<S*>(memory + tile_bytes);
  S* condition = time + most * width;
  auto time_of = [&](int64_t i) {
    return !args.t ? args.time : load_one<double>(args.t, args.t_dtype, args.shared_time ? 0 : i);
  };
  if (args.shared_time) tile.time_prefix(time_of, 1, time);
  for (int64_t i = begin; i < end; i += most) {
    const int64_t n = end - i < most ? end - i : most;
    bool shared = args.shared_time;
    if (!shared) {
      // A batch of one time is common: its prefix is made once.
      const double first = time_of(i);
      shared = true;
      for (int64_t k = 1; shared && k < n; ++k) shared = time_of(i + k) == first;
      tile.time_prefix([&](int64_t k) { return time_of(i + k); }, shared ? 1 : n, time);
    }
    Prefix<S> conditions;
    if (args.cond) {
      tile.condition_prefix(static_cast<const S*>(args.cond) + i * net.condition_count, n, condition);
      conditions = {condition, width};
    }
    tile.evaluate(static_cast<const S*>(args.x) + i * net.dim, n, {time, shared ? 0 : width}, conditions,
                  static_cast<S*>(args.out) + i * net.dim);
  }
}

inline void network(const NetworkArgs& args, int64_t begin, int64_t end) {
  if (args.network.dtype == DType::kFloat64) return network_range<double>(args, begin, end);
  network_range<float>(args, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
