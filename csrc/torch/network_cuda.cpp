// network on CUDA.
#include "network.hpp"

#include "../core/half.hpp"
#include "engine_cuda.hpp"

namespace pfc::ops {

namespace {

double host_time(const Tensor& t) {
  const void* at = t.const_data_ptr();
  switch (dtype_of(t, "t")) {
    case DType::kFloat32: return *static_cast<const float*>(at);
    case DType::kFloat64: return *static_cast<const double*>(at);
    case DType::kBFloat16: return bfloat16_to_float<float, uint32_t>(static_cast<const pfc::BFloat16*>(at)->bits);
    default: return float16_to_float<float, uint32_t>(static_cast<const pfc::Float16*>(at)->bits);
  }
}

Tensor network(Tensor x, Tensor t, OptionalTensor cond, Tensor params, Tensor layers, Tensor features,
               int64_t precision) {
  const OnDevice device(x, "x");
  const Tensor weights = aligned_params(params);
  NetworkCall call = prepare_network(x, t, cond, weights, layers, features);
  if (t.is_cpu()) {
    call.args.time = host_time(t);
    call.args.t = nullptr;
  } else {
    Place(x).check(t, "t");
  }
  const auto args = cuda::engine_args(call.args, engine_precision(precision, call.args.network.dtype));
  run_engine(args, device, call.out, "network");
  return call.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CUDA, m) { m.impl("network", TORCH_BOX(&network)); }

}  // namespace pfc::ops
