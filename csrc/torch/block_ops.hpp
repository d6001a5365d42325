// The operators themselves, the same for every device: `Device::run` takes arguments of which no element is missing.
#pragma once

#include "block.hpp"

namespace pfc::ops {

template <class Device>
struct BlockOperators {
  static void run(NormCall& call) {
    if (call.args.rows * call.args.width > 0) Device::run(call.args, call.x);
  }
  static void run(GatedCall& call, const Tensor& x) {
    if (call.args.rows * call.args.width > 0) Device::run(call.args, x);
  }

  static Tensor norm_modulate(Tensor x, OptionalTensor shift, OptionalTensor scale, OptionalTensor weight,
                              OptionalTensor bias, bool rms, double eps) {
    NormCall call;
    set_tokens(call, x);
    set_norm(call, shift, scale, weight, bias, rms, eps);
    Tensor out = result_like(call.x, call.args.out);
    run(call);
    return out;
  }

  static Tensor gate_residual(Tensor x, Tensor y, OptionalTensor gate, OptionalTensor y_bias) {
    NormCall call;
    set_tokens(call, x);
    set_residual(call, y, gate, y_bias);
    Tensor out = result_like(call.x, call.args.x_out);
    run(call);
    return out;
  }

  static void gate_residual_(Tensor x, Tensor y, OptionalTensor gate, OptionalTensor y_bias) {
    check_written(x, "x");
    NormCall call;
    set_tokens(call, x);
    set_residual(call, y, gate, y_bias);
    call.args.x_out = x.mutable_data_ptr();
    run(call);
  }

  static std::tuple<Tensor, Tensor> gate_residual_norm(Tensor x, Tensor y, OptionalTensor gate, OptionalTensor y_bias,
                                                       OptionalTensor shift, OptionalTensor scale,
                                                       OptionalTensor weight, OptionalTensor bias, bool rms,
                                                       double eps) {
    NormCall call;
    set_tokens(call, x);
    set_residual(call, y, gate, y_bias);
    set_norm(call, shift, scale, weight, bias, rms, eps);
    Tensor moved = result_like(call.x, call.args.x_out);
    Tensor out = result_like(call.x, call.args.out);
    run(call);
    return {moved, out};
  }

  static Tensor gate_residual_norm_(Tensor x, Tensor y, OptionalTensor gate, OptionalTensor y_bias,
                                    OptionalTensor shift, OptionalTensor scale, OptionalTensor weight,
                                    OptionalTensor bias, bool rms, double eps) {
    check_written(x, "x");
    NormCall call;
    set_tokens(call, x);
    set_residual(call, y, gate, y_bias);
    set_norm(call, shift, scale, weight, bias, rms, eps);
    call.args.x_out = x.mutable_data_ptr();
    Tensor out = result_like(call.x, call.args.out);
    run(call);
    return out;
  }

  static Tensor swiglu(Tensor x, OptionalTensor bias) {
    GatedCall call = prepare_gated(x, bias, Gated::kSwiGLU);
    std::vector<int64_t> shape;
    for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
    shape.back() /= 2;
    Tensor out = torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()));
    call.args.out = out.mutable_data_ptr();
    run(call, x);
    return out;
  }

  static Tensor gelu(Tensor x, OptionalTensor bias, bool tanh) {
    GatedCall call = prepare_gated(x, bias, tanh ? Gated::kGELUTanh : Gated::kGELU);
    Tensor out = result_like(call.held.tensors.back(), call.args.out);
    run(call, x);
    return out;
  }

  static void gelu_(Tensor x, OptionalTensor bias, bool tanh) {
    check_written(x, "x");
    GatedCall call = prepare_gated(x, bias, tanh ? Gated::kGELUTanh : Gated::kGELU);
    call.args.out = x.mutable_data_ptr();
    run(call, x);
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("norm_modulate", TORCH_BOX(&norm_modulate));
    m.impl("gate_residual", TORCH_BOX(&gate_residual));
    m.impl("gate_residual_", TORCH_BOX(&gate_residual_));
    m.impl("gate_residual_norm", TORCH_BOX(&gate_residual_norm));
    m.impl("gate_residual_norm_", TORCH_BOX(&gate_residual_norm_));
    m.impl("swiglu", TORCH_BOX(&swiglu));
    m.impl("gelu", TORCH_BOX(&gelu));
    m.impl("gelu_", TORCH_BOX(&gelu_));
  }
};

}  // namespace pfc::ops
