// The network and the trace of its Jacobian in x, on a tile of samples: the products J v ride with the forward pass.
//
// Forward mode: a tangent passes through the layers that the state passes through, without biases, and each activation
// multiplies it by its slope, which the state's own pass leaves behind. Tangents are rows of the same micro-kernel. The exact
// trace takes the unit tangents: after layer 0 they are the columns of W_x, and of the last layer only the diagonal is wanted,
// a dot product for each. Traces are summed in float64, over the tangents in their order: no result depends on the tile.
//
//   DivergenceTile<S> tile(network, {samples, tangents at once}, memory);   // bytes(...) of memory, 64-byte aligned
//   tile.evaluate(x, n, time, condition, probes, batch, which samples of it, out, traces);
#pragma once

#include "../core/divergence.hpp"
#include "engine.hpp"
#include "network_kernel.hpp"

namespace pfc::cpu {
namespace {

// Samples of a tile, and tangents of each that pass together.
struct TileShape {
  int64_t samples, tangents;
};

// Where a tile's samples are in the batch: one after the other, or where a list says.
struct TileSamples {
  int64_t first = 0;
  const int64_t* listed = nullptr;

  PFC_INLINE int64_t at(int64_t i) const { return listed ? listed[i] : first + i; }
};

template <class S>
class DivergenceTile {
 public:
  static PFC_INLINE int64_t bytes(const Network& net, TileShape shape) {
    const int64_t stride = row_stride(net), rows = shape.samples * shape.tangents;
    const int64_t last = net.layers > 1 ? net.dim * padded_to_panel(net.layer[net.layers - 1].in) : 0;
    return static_cast<int64_t>(sizeof(S)) *
           (kZeros + kBuffers * (shape.samples + rows) * stride + slope_count(net) * shape.samples * stride + last);
  }

  PFC_INLINE DivergenceTile(const Network& net, TileShape shape, void* memory) : net_(net), shape_(shape) {
    S* at = static_cast<S*>(memory);
    stride_ = row_stride(net);
    zeros_ = take(at, kZeros);
    for (int i = 0; i < kZeros; ++i) zeros_[i] = S(0);
    for (S*& buffer : state_) buffer = take(at, shape.samples * stride_);
    for (S*& buffer : tangent_) buffer = take(at, shape.samples * shape.tangents * stride_);
    for (int l = 0; l < net.layers; ++l) {
      const Layer& layer = net.layer[l];
      slope_[l] = layer.activation == Activation::kIdentity ? nullptr : take(at, shape.samples * stride_);
      after_[l] = layer.after == Activation::kIdentity ? nullptr : take(at, shape.samples * stride_);
    }
    last_ = net.layers > 1 ? take(at, net.dim * last_stride()) : nullptr;
    unpack_last();
    place_buffers(net_, to_);
  }

  // x [n][dim], out [n][dim] (which may be x), traces [n][estimates].
  inline void evaluate(const S* x, int64_t n, Prefix<S> time, Prefix<S> condition, const Probes& probes, int64_t batch,
                       TileSamples samples, S* out, double* traces) const {
    run_states(x, n, time, condition);
    const S* last = state_[to_[net_.layers - 1]];
    const int64_t estimates = probes.estimates();
    for (int64_t i = 0; i < n * estimates; ++i) traces[i] = 0.0;
    const int64_t count = probes.values ? probes.count : net_.dim;
    for (int64_t k = 0; k < count; k += shape_.tangents) {
      const int64_t c = count - k < shape_.tangents ? count - k : shape_.tangents;
      if (probes.values)
        run_probes(static_cast<const S*>(probes.values) + k * batch * net_.dim, batch * net_.dim, samples, n, c,
                   traces + k, estimates);
      else
        run_units(k, n, c, traces);
    }
    for (int64_t i = 0; i < n; ++i)
      __builtin_memcpy(out + i * net_.dim, last + i * stride_, sizeof(S) * static_cast<std::size_t>(net_.dim));
  }

 private:
  static constexpr int kZeros = kMaxWidth;

  // A cache line longer than the contents, as in NetworkTile.
  static PFC_INLINE int64_t row_stride(const Network& net) {
    int64_t widest = net.dim;
    for (int l = 0; l < net.layers; ++l) widest = net.layer[l].out > widest ? net.layer[l].out : widest;
    return padded_to_panel(widest) + kPanel;
  }

  static PFC_INLINE int64_t slope_count(const Network& net) {
    int64_t count = 0;
    for (int l = 0; l < net.layers; ++l)
      count += (net.layer[l].activation != Activation::kIdentity) + (net.layer[l].after != Activation::kIdentity);
    return count;
  }

  static PFC_INLINE S* take(S*& at, int64_t count) {
    S* here = at;
    at += count;
    return here;
  }

  PFC_INLINE const S* params() const { return static_cast<const S*>(net_.params); }
  PFC_INLINE int64_t last_stride() const { return padded_to_panel(net_.layer[net_.layers - 1].in); }

  // The last layer's rows one after the other, zero beyond their ends: for the diagonal.
  inline void unpack_last() const {
    if (!last_) return;
    const Layer& layer = net_.layer[net_.layers - 1];
    for (int64_t k = 0; k < net_.dim; ++k) {
      const S* from = params() + layer.weights + (k / kPanel) * static_cast<int64_t>(layer.in) * kPanel + k % kPanel;
      S* row = last_ + k * last_stride();
      for (int64_t j = 0; j < layer.in; ++j) row[j] = from[j * kPanel];
      for (int64_t j = layer.in; j < last_stride(); ++j) row[j] = S(0);
    }
  }

  // The states through every layer; the slopes stay.
  inline void run_states(const S* x, int64_t n, Prefix<S> time, Prefix<S> condition) const {
    run_layers(net_, x, n, time, condition, state_, to_, stride_,
               [&](int l, bool after, int64_t at, int64_t rows, int64_t elements, S* z) {
                 const Layer& layer = net_.layer[l];
                 activate_rows_with_slope(after ? layer.after : layer.activation,
                                          after ? layer.after_parameter : layer.parameter, z,
                                          (after ? after_ : slope_)[l] + at, rows, elements, stride_);
               });
  }

  // Unit tangents k to k + c of every sample; a sample's rows follow each other. Adds the diagonal to traces [n].
  inline void run_units(int64_t k, int64_t n, int64_t c, double* traces) const {
    const int last = net_.layers - 1;
    if (last > 0) start_units(k, n, c, tangent_[to_[0]]);
    for (int l = 1; l < last; ++l) run_layer(l, tangent_[to_[l - 1]], stride_, n * c, c);
    const Layer& layer = net_.layer[last];
    const S* residual = layer.residual > 0 ? tangent_[to_[layer.residual - 1]] : nullptr;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < c; ++j) {
        const int64_t element = k + j, row = (i * c + j) * stride_;
        S value =
            last > 0 ? dot(last_ + element * last_stride(), tangent_[to_[last - 1]] + row, layer.in)
                     : params()[net_.x_weights() + (element / kPanel * net_.dim + element) * kPanel + element % kPanel];
        if (slope_[last]) value *= slope_[last][i * stride_ + element];
        if (residual) value += residual[row + element];
        if (after_[last]) value *= after_[last][i * stride_ + element];
        traces[i] += static_cast<double>(value);
      }
  }

  // Unit tangents after layer 0: columns of W_x, times the slopes of their sample, in one pass.
  inline void start_units(int64_t k, int64_t n, int64_t c, S* to) const {
    using V = Native<S>;
    const int64_t panel = static_cast<int64_t>(net_.dim) * kPanel, width = padded_to_panel(net_.layer[0].out);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t e = 0; e < width; e += Wide<S>::kLanes) {
        const S* column = params() + net_.x_weights() + e / kPanel * panel + k * kPanel + e % kPanel;
        const V slope = slope_[0] ? load_bytes<V>(slope_[0] + i * stride_ + e) : activation::splat<V>(S(1));
        S* row = to + i * c * stride_ + e;
        for (int64_t j = 0; j < c; ++j)
          store_bytes(row + j * stride_, load_bytes<V>(column + j * kPanel) * slope, false);
      }
    if (after_[0]) scale_rows(after_[0], 0, n * c, c, width, to);
  }

  // Probes [c][batch][dim], `probe` elements apart: v . (J v) into traces, `estimates` apart for samples.
  inline void run_probes(const S* values, int64_t probe, TileSamples samples, int64_t n, int64_t c, double* traces,
                         int64_t estimates) const {
    const auto probe_of = [&](int64_t row) {
      return values + (row % c) * probe + samples.at(row / c) * static_cast<int64_t>(net_.dim);
    };
    // Any buffer but the one that layer 0 writes.
    S* rows = tangent_[(to_[0] + 1) % kBuffers];
    for (int64_t r = 0; r < n * c; ++r)
      __builtin_memcpy(rows + r * stride_, probe_of(r), sizeof(S) * static_cast<std::size_t>(net_.dim));
    for (int l = 0; l < net_.layers; ++l) run_layer(l, l ? tangent_[to_[l - 1]] : rows, stride_, n * c, c);
    const S* products = tangent_[to_[net_.layers - 1]];
    for (int64_t r = 0; r < n * c; ++r) {
      const S* v = probe_of(r);
      double sum = 0.0;
      for (int64_t k = 0; k < net_.dim; ++k)
        sum += static_cast<double>(v[k]) * static_cast<double>(products[r * stride_ + k]);
      traces[r / c * estimates + r % c] = sum;
    }
  }

  inline void run_layer(int l, const S* from, int64_t from_stride, int64_t rows, int64_t c) const {
    const Layer& layer = net_.layer[l];
    Dense<S> d{from,
               from_stride,
               l ? layer.in : net_.dim,
               layer.out,
               params() + (l ? layer.weights : net_.x_weights()),
               zeros_,
               0};
    S* to = d.to = tangent_[to_[l]];
    d.to_stride = stride_;
    const S* residual = layer.residual > 0 ? tangent_[to_[layer.residual - 1]] : nullptr;
    multiply(d, rows, [&](int64_t row, int64_t count, int64_t element, int64_t elements) {
      bend(l, residual, row, count, c, element, elements, to);
    });
  }

  // What a layer does to tangents after its product: slopes of the samples that rows belong to, and the residual.
  inline void bend(int l, const S* residual, int64_t row, int64_t count, int64_t c, int64_t element, int64_t elements,
                   S* to) const {
    const int64_t at = row * stride_ + element;
    if (slope_[l]) scale_rows(slope_[l] + element, row, count, c, elements, to + at);
    if (residual) add_rows(residual + at, to + at, count, elements, stride_);
    if (after_[l]) scale_rows(after_[l] + element, row, count, c, elements, to + at);
  }

  inline void scale_rows(const S* slope, int64_t row, int64_t count, int64_t c, int64_t elements, S* to) const {
    // A division a row would cost a quarter of its products.
    const S* by = slope + row / c * stride_;
    int64_t left = c - row % c;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t j = 0; j < elements; j += Wide<S>::kLanes) {
        S* z = to + r * stride_ + j;
        store_bytes(z, load_bytes<Native<S>>(z) * load_bytes<Native<S>>(by + j), false);
      }
      if (--left == 0) {
        by += stride_;
        left = c;
      }
    }
  }

  // The sum over lanes, by halves.
  template <int kCount>
  static PFC_INLINE S sum_of_lanes(const typename NativeOf<S, kCount>::type& v) {
    if constexpr (kCount == 1) {
      return v[0];
    } else {
      typename NativeOf<S, kCount / 2>::type half[2];
      __builtin_memcpy(&half, &v, sizeof(v));
      return sum_of_lanes<kCount / 2>(half[0] + half[1]);
    }
  }

  // Lane by lane and then over the lanes; `a` is zero beyond its end, and whole vectors end inside the rows.
  static PFC_INLINE S dot(const S* a, const S* b, int64_t count) {
    constexpr int kLanes = Wide<S>::kLanes;
    Native<S> sum{};
    for (int64_t j = 0; j < count / kLanes * kLanes; j += kLanes)
      sum = Math::mul_add(load_bytes<Native<S>>(a + j), load_bytes<Native<S>>(b + j), sum);
    S total = sum_of_lanes<kLanes>(sum);
    for (int64_t j = count / kLanes * kLanes; j < count; ++j) total += a[j] * b[j];
    return total;
  }

  const Network& net_;
  TileShape shape_;
  int64_t stride_;
  S* zeros_;
  S *state_[kBuffers], *tangent_[kBuffers];
  S *slope_[kMaxLayers], *after_[kMaxLayers];
  S* last_;
  int to_[kMaxLayers];
};

// Rows of tangents as many as NetworkTile has samples, in nearly equal parts of the tangents; six samples at least, where
// there are so many, that the states' own pass fills a block.
template <class S>
PFC_INLINE TileShape divergence_shape(const Network& net, const Probes& probes, int64_t n) {
  const int64_t rows = tile_samples<S>(net, int64_t{1} << 40);
  const int64_t count = probes.values ? probes.count : net.dim;
  const int64_t least = n < kBlockSamples ? (n > 0 ? n : 1) : kBlockSamples;
  const int64_t parts = (count * least + rows - 1) / rows;
  const int64_t tangents = parts > 0 ? (count + parts - 1) / parts : 1;
  const int64_t samples = rows / (tangents > 0 ? tangents : 1);
  return {samples < least ? least : samples < n ? samples : n > 0 ? n : 1, tangents > 0 ? tangents : 1};
}

template <class S>
inline void divergence_range(const DivergenceArgs& args, int64_t begin, int64_t end) {
  const NetworkArgs& at = args.at;
  const Network& net = at.network;
  const TileShape shape = divergence_shape<S>(net, args.probes, end - begin);
  const int64_t width = padded_to_panel(net.layer[0].out);
  const int64_t tile_bytes = DivergenceTile<S>::bytes(net, shape);
  const int64_t net_bytes = NetworkTile<S>::bytes(net, shape.samples);
  char* memory = static_cast<char*>(thread_scratch(
      static_cast<std::size_t>(tile_bytes + net_bytes + 2 * static_cast<int64_t>(sizeof(S)) * shape.samples * width)));
  const DivergenceTile<S> tile(net, shape, memory);
  const NetworkTile<S> prefixes(net, shape.samples, memory + tile_bytes);
  S* time = reinterpret_cast<S*>(memory + tile_bytes + net_bytes);
  S* condition = time + shape.samples * width;
  auto time_of = [&](int64_t i) {
    return !at.t ? at.time : load_one<double>(at.t, at.t_dtype, at.shared_time ? 0 : i);
  };
  if (at.shared_time) prefixes.time_prefix(time_of, 1, time);
  for (int64_t i = begin; i < end; i += shape.samples) {
    const int64_t n = end - i < shape.samples ? end - i : shape.samples;
    if (!at.shared_time) prefixes.time_prefix([&](int64_t k) { return time_of(i + k); }, n, time);
    Prefix<S> conditions;
    if (at.cond) {
      prefixes.condition_prefix(static_cast<const S*>(at.cond) + i * net.condition_count, n, condition);
      conditions = {condition, width};
    }
    tile.evaluate(static_cast<const S*>(at.x) + i * net.dim, n, {time, at.shared_time ? 0 : width}, conditions,
                  args.probes, at.batch, {i}, static_cast<S*>(at.out) + i * net.dim,
                  args.traces + i * args.probes.estimates());
  }
}

inline void divergence(const DivergenceArgs& args, int64_t begin, int64_t end) {
  if (args.at.network.dtype == DType::kFloat64) return divergence_range<double>(args, begin, end);
  divergence_range<float>(args, begin, end);
}

}  // namespace
}  // namespace pfc::cpu
