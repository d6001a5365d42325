// A small network, as the engines take it: linear layers, each with an activation, a residual, and an activation after it.
// What a layer computes, and in which order it adds up, is said here once; the CPU, CUDA and plain PyTorch versions follow.
//
//   input of layer 0:  [ features of t | conditions | x ]
//   layer 0:           z = (b + W_t f(t)) + (0 + W_c c) + W_x x
//   other layers:      z = b + W h
//   output:            after(activation(z) + h_residual)
//
// A product W h is added to what stands before it, z, in chains of kChain: each chain adds one product at a time to one
// accumulator that starts at 0, s <- s + w_k h_k in order of k, by a fused multiply-add where the instruction set has one, and
// the chains are added to z in order, z <- z + s. So no result depends on the batch, the tile or the thread. (One chain over all
// k would be as fixed, but in float32 its error is two to four times that of a BLAS at 128 to 512 inputs.)
// The parts of layer 0 that t and c give are each computed once where they are shared or fixed: c's over a trajectory, t's
// over all samples of a row. Without conditions their bracket is left out.
#pragma once

#include <cstdint>

#include "arguments.hpp"

namespace pfc {

// Outputs in one panel of packed weights: [ceil(out / kPanel)][in][kPanel], zero where there is no output. One AVX-512
// vector of float32; every instruction set and the GPU read the same packing.
inline constexpr int kPanel = 16;
inline constexpr int kChain = 32;  // products in one chain of a sum
inline constexpr int kMaxLayers = 34;
inline constexpr int kMaxWidth = 512;    // of x, and of a layer
inline constexpr int kMaxInputs = 1024;  // features, or conditions

// The numbers travel in the table of layers; pyflowcore/network.py has the same list.
enum class Activation : int {
  kIdentity,
  kReLU,
  kSiLU,
  kGELU,      // x Phi(x), by erf
  kGELUTanh,  // its approximation by tanh
  kSELU,
  kTanh,
  kSoftplus,  // parameter: beta; above beta x = 20 the identity, as in torch
  kELU,       // parameter: alpha
  kSigmoid,
  kLeakyReLU,  // parameter: slope
};
inline constexpr int kActivations = 11;

// The record of a layer: offsets into a row of the table, float64.
namespace layer_record {
inline constexpr int kIn = 0, kOut = 1, kActivation = 2, kParameter = 3, kResidual = 4, kAfter = 5, kAfterParameter = 6,
                     kWeights = 7, kBias = 8, kWidth = 9;
}

struct Layer {
  int in = 0, out = 0;
  Activation activation = Activation::kIdentity;
  double parameter = 0.0;
  // The layer whose *input* is added to this layer's activation, at least 1 and at most this layer; -1 for none. At most
  // one such input is waiting at any time.
  int residual = -1;
  Activation after = Activation::kIdentity;
  double after_parameter = 0.0;
  int64_t weights = 0,
          bias = 0;  // elements from the start of the parameters, multiples of kPanel; a bias has whole panels
};

// One feature of time: t' = frequency t + phase, as it is, its sine or its cosine; computed in float64, rounded once.
enum class Feature : int { kLinear, kSine, kCosine };
namespace feature_record {
inline constexpr int kKind = 0, kFrequency = 1, kPhase = 2, kWidth = 3;
}

struct Network {
  DType dtype = DType::kFloat32;  // of parameters, states and sums: float32 or float64
  const void* params = nullptr;
  const double* features = nullptr;  // host memory, records
  int dim = 0, feature_count = 0, condition_count = 0;
  int layers = 0;
  Layer layer[kMaxLayers];

  // Layer 0's three blocks follow each other, in the order of its input.
  PFC_HD static int panels(int out) { return (out + kPanel - 1) / kPanel; }
  PFC_HD int64_t time_weights() const { return layer[0].weights; }
  PFC_HD int64_t condition_weights() const {
    return time_weights() + static_cast<int64_t>(panels(layer[0].out)) * feature_count * kPanel;
  }
  PFC_HD int64_t x_weights() const {
    return condition_weights() + static_cast<int64_t>(panels(layer[0].out)) * condition_count * kPanel;
  }
};

inline Layer decode_layer(const double* rec) {
  using namespace layer_record;
  Layer layer;
  layer.in = static_cast<int>(rec[kIn]);
  layer.out = static_cast<int>(rec[kOut]);
  layer.activation = static_cast<Activation>(static_cast<int>(rec[kActivation]));
  layer.parameter = rec[kParameter];
  layer.residual = static_cast<int>(rec[kResidual]);
  layer.after = static_cast<Activation>(static_cast<int>(rec[kAfter]));
  layer.after_parameter = rec[kAfterParameter];
  layer.weights = static_cast<int64_t>(rec[kWeights]);
  layer.bias = static_cast<int64_t>(rec[kBias]);
  return layer;
}

}  // namespace pfc
