// network: from tensors to NetworkArgs. What CPU and CUDA share; they differ in the kernel that they call.
#pragma once

#include <cmath>
#include <vector>

#include "../core/trajectory.hpp"
#include "tensors.hpp"

namespace pfc::ops {

// A number of a float64 table that must be whole and within bounds: nothing else may become an offset or an enum.
inline int64_t whole(double value, int64_t low, int64_t high, const char* table, int64_t row, const char* what) {
  PFC_CHECK(value >= static_cast<double>(low) && value <= static_cast<double>(high) && value == std::floor(value),
            table, ": row ", row, " has ", what, " ", value, ", allowed are whole numbers from ", low, " to ", high);
  return static_cast<int64_t>(value);
}

inline const double* host_table(const Tensor& table, int64_t width, const char* name) {
  PFC_CHECK(table.is_cpu() && table.scalar_type() == ScalarType::Double && table.dim() == 2 && table.size(1) == width &&
                table.is_contiguous(),
            name, " must be contiguous float64 of shape [", name, ", ", width, "] on the CPU, got ",
            torch::headeronly::toString(table.scalar_type()), " ", shape_of(table));
  return static_cast<const double*>(table.const_data_ptr());
}

// Every residual adds an input of its own layer's output width, and at most one earlier input is waiting at any time:
// kernels have memory for one.
inline void check_residuals(const Network& net) {
  int waiting[kMaxLayers] = {};
  for (int l = 0; l < net.layers; ++l) {
    const int from = net.layer[l].residual;
    if (from < 0) continue;
    PFC_CHECK(net.layer[from].in == net.layer[l].out, "layers: row ", l, " adds the input of layer ", from, ", ",
              net.layer[from].in, " wide, to an output of ", net.layer[l].out);
    // The input of layer l itself is at hand and waits nowhere.
    for (int m = from + 1; m <= l; ++m) {
      PFC_CHECK(waiting[m] == 0 || waiting[m] == from, "layers: row ", l, " adds the input of layer ", from,
                " while that of layer ", waiting[m], " is waiting; one may wait at a time");
      waiting[m] = from;
    }
  }
}

inline Network decode_network(const Tensor& params, const Tensor& layers, const Tensor& features, int64_t dim,
                              int64_t conditions) {
  using namespace layer_record;
  Network net;
  net.dtype = dtype_of(params, "params");
  const double* table = host_table(layers, kWidth, "layers");
  net.features = host_table(features, feature_record::kWidth, "features");
  PFC_CHECK(params.dim() == 1 && params.is_contiguous(), "params must be flat and contiguous, got shape ",
            shape_of(params));
  PFC_CHECK(layers.size(0) >= 1 && layers.size(0) <= kMaxLayers, "layers has ", layers.size(0),
            " rows, allowed are 1 to ", kMaxLayers);
  PFC_CHECK(features.size(0) <= kMaxInputs, "features has ", features.size(0), " rows, at most ", kMaxInputs);
  PFC_CHECK(conditions <= kMaxInputs, "cond has ", conditions, " columns, at most ", kMaxInputs);
  PFC_CHECK(dim >= 1 && dim <= kMaxWidth, "x has ", dim, " elements in a sample, allowed are 1 to ", kMaxWidth);
  net.dim = static_cast<int>(dim);
  net.feature_count = static_cast<int>(features.size(0));
  net.condition_count = static_cast<int>(conditions);
  net.layers = static_cast<int>(layers.size(0));
  for (int f = 0; f < net.feature_count; ++f)
    whole(net.features[f * feature_record::kWidth + feature_record::kKind], 0, 2, "features", f, "kind");
  const int64_t size = params.numel();
  int64_t width = net.feature_count + net.condition_count + dim;
  for (int l = 0; l < net.layers; ++l) {
    const double* rec = table + l * kWidth;
    whole(rec[kIn], width, width, "layers", l, "inputs");
    const bool last = l == net.layers - 1;
    width = whole(rec[kOut], last ? dim : 1, last ? dim : kMaxWidth, "layers", l, "outputs");
    whole(rec[kActivation], 0, kActivations - 1, "layers", l, "activation");
    whole(rec[kAfter], 0, kActivations - 1, "layers", l, "activation after");
    if (whole(rec[kResidual], -1, l, "layers", l, "residual") == 0)
      PFC_CHECK(false, "layers: row ", l, " adds the input of layer 0, which has no one width");
    const int64_t padded = static_cast<int64_t>(Network::panels(static_cast<int>(width))) * kPanel;
    const int64_t weights = padded * static_cast<int64_t>(rec[kIn]);
    const int64_t at = whole(rec[kWeights], 0, size - weights, "layers", l, "weights at");
    const int64_t bias = whole(rec[kBias], 0, size - padded, "layers", l, "bias at");
    PFC_CHECK(at % kPanel == 0 && bias % kPanel == 0, "layers: row ", l, " has weights at ", at, " and bias at ", bias,
              ", allowed are multiples of ", kPanel);
    net.layer[l] = decode_layer(rec);
  }
  check_residuals(net);
  net.params = params.const_data_ptr();
  return net;
}

// Keeps what a call borrowed or copied alive until the kernel has it.
struct NetworkCall {
  NetworkArgs args;
  Tensor out;
  std::vector<Tensor> held;

  const void* hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back().const_data_ptr();
  }
};

// A network's parameters and its conditions, for samples of `dim` elements; `name` is the tensor that has their dtype.
inline Network prepare_packed(const Place& place, ScalarType dtype, const char* name, int64_t dim,
                              const OptionalTensor& cond, const Tensor& params, const Tensor& layers,
                              const Tensor& features) {
  PFC_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64, got ",
            torch::headeronly::toString(dtype));
  place.check(params, "params");
  PFC_CHECK(params.scalar_type() == dtype, "params has dtype ", torch::headeronly::toString(params.scalar_type()), ", ",
            name, " has ", torch::headeronly::toString(dtype));
  if (cond) {
    place.check(*cond, "cond");
    PFC_CHECK(cond->scalar_type() == dtype, "cond has dtype ", torch::headeronly::toString(cond->scalar_type()), ", ",
              name, " has ", torch::headeronly::toString(dtype));
    PFC_CHECK(cond->dim() == 2 && cond->size(1) >= 1, "cond must be [B, C] with C from 1 to ", kMaxInputs, ", got ",
              shape_of(*cond));
  }
  return decode_network(params, layers, features, dim, cond ? cond->size(1) : 0);
}

// The state of a network, its parameters and its conditions: the same for network and trajectory.
inline Network prepare_fused(const Tensor& x, const char* name, const OptionalTensor& cond, const Tensor& params,
                             const Tensor& layers, const Tensor& features) {
  PFC_CHECK(x.dim() >= 1, name, " must have a batch dimension, got a scalar");
  return prepare_packed(Place(x), x.scalar_type(), name, sample_size(x), cond, params, layers, features);
}

inline NetworkCall prepare_network(const Tensor& x, const Tensor& t, const OptionalTensor& cond, const Tensor& params,
                                   const Tensor& layers, const Tensor& features) {
  NetworkCall call;
  NetworkArgs& args = call.args;
  args.network = prepare_fused(x, "x", cond, params, layers, features);
  args.batch = x.size(0);
  PFC_CHECK(!cond || cond->size(0) == args.batch, "cond has ", cond ? cond->size(0) : 0, " rows, x has ", args.batch,
            " samples");
  args.t_dtype = dtype_of(t, "t");
  args.shared_time = t.dim() == 0;
  PFC_CHECK(t.dim() == 0 || (t.dim() == 1 && t.size(0) == args.batch), "t must be [", args.batch,
            "] or one time without dimensions, got shape ", shape_of(t));
  // One time may be on the CPU whatever the device is; the launcher of a device then reads it there.
  if (t.dim() == 1) Place(x).check(t, "t");
  args.t = call.hold(t);
  args.x = call.hold(x);
  if (cond) args.cond = call.hold(*cond);
  call.out = torch::stable::empty_like(call.held[1]);
  args.out = call.out.mutable_data_ptr();
  return call;
}

}  // namespace pfc::ops
